"""The command line: which files it reads, and what it says of those it cannot."""

import builtins
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from _shell import POINTS, assert_refused, fit, fitted, read, run
from pyarrow import feather, parquet

import diffkm_jax as dk
from diffkm_jax._command_line import reading


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_fit(monkeypatch):
    """What is refused is refused before the fit."""
    monkeypatch.setattr(dk, "fit", None)


# What can be read.


def centroid_of(file, *options):
    """The mean of a file's points, as the one centroid of a fit, and their number."""
    outcome = run("fit", file, "-k", 1, "--out", "mean.npz", *options)
    assert (outcome[0], outcome[2]) == (0, "")
    saved = read("mean.npz")
    assert saved["centroids"].dtype == np.float64
    return saved["centroids"][0], float(saved["counts"][0])


@pytest.mark.parametrize("dtype", ["?", "i1", "u8", "f2", ">f4", "f8"])
def test_numbers_of_any_kind_are_read(dtype):
    points = np.abs(POINTS).astype(dtype)
    np.save("x.npy", np.asfortranarray(points))
    mean, n = centroid_of("x.npy")
    np.testing.assert_allclose(mean, points.astype(np.float64).mean(0), rtol=1e-12)
    assert n == 60


@pytest.mark.parametrize(
    ("arrays", "options", "expected"),
    [
        ({"any": POINTS}, (), POINTS),
        ({"points": POINTS, "other": -POINTS}, (), POINTS),
        ({"points": POINTS, "other": -POINTS}, ("--key", "other"), -POINTS),
    ],
    ids=["single", "points", "key"],
)
def test_npz_array_is_the_only_one_or_points_or_the_key(arrays, options, expected):
    np.savez("x.npz", **arrays)
    mean, _ = centroid_of("x.npz", *options)
    np.testing.assert_allclose(mean, expected.mean(0), rtol=1e-12)


TEXTS = {
    "plain": (".csv", "1,2\n3,4\n", (), [2, 3], 2),
    "header": (".csv", "a,b\n1,2\n3,4\n", (), [2, 3], 2),
    "byte-order mark": (".csv", "\ufeff1,2\n3,4", (), [2, 3], 2),
    "carriage returns": (".csv", "a,b\r\n1,2\r\n3,4\r\n", (), [2, 3], 2),
    "quotes and spaces": (".csv", '"1", 2\n 3 ,"4"\n', (), [2, 3], 2),
    "empty lines at the end": (".csv", "1,2\n3,4\n\n\n", (), [2, 3], 2),
    "one column": (".csv", "x\n1\n3\n", (), [2], 2),
    "numbers above": (".csv", "0,1\n2,3\n", (), [1, 2], 2),
    "numbers as header": (".csv", "0,1\n2,3\n", ("--header",), [2, 3], 1),
    "tabs": (".tsv", "a\tb\n1\t2\n3\t4\n", (), [2, 3], 2),
    "white space": (".txt", " 1  2\n3\t4\n", (), [2, 3], 2),
    "semicolons": (".csv", "a;b\n1;2\n3;4\n", ("--delimiter", ";"), [2, 3], 2),
    "tabs by name": (".txt", "1\t2\n3\t4\n", ("--delimiter", "tab"), [2, 3], 2),
    "columns by name": (".csv", "t,a,b\nx,1,2\n", ("--columns", "b,a"), [2, 1], 1),
    "columns by number": (".csv", "7,1,2\n8,3,4\n", ("--columns", "1,2"), [2, 3], 2),
    "weights": (".csv", "a,w\n1,1\n3,3\n", ("--weights", "w"), [2.5], 4),
    "weights and columns": (
        ".csv",
        "id,w,a\nx,1,1\ny,3,3\n",
        ("--weights", "w", "--columns", "a"),
        [2.5],
        4,
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("suffix", "text", "options", "mean", "weight"), TEXTS.values(), ids=TEXTS
)
def test_text_is_read(suffix, text, options, mean, weight):
    file = Path(f"x{suffix}")
    file.write_text(text, encoding="utf-8", newline="")
    found = centroid_of(file, *options)
    np.testing.assert_allclose(found[0], mean, rtol=1e-12)
    assert found[1] == weight


TABLE = {"id": ["u", "v", "w"], "a": [1, 2, 6], "b": [0.5, 1.5, 4.0]}
WRITERS = {
    ".parquet": parquet.write_table,
    ".feather": feather.write_feather,
    ".arrow": lambda table, path: write_stream(table, path),
}


def write_stream(table, path):
    with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, table.schema) as out:
        out.write_table(table)


@pytest.mark.parametrize("suffix", WRITERS)
def test_arrow_tables_are_read(suffix):
    WRITERS[suffix](pa.table(TABLE), f"x{suffix}")
    mean, n = centroid_of(f"x{suffix}", "--columns", "b,1")
    np.testing.assert_allclose(mean, [2, 3], rtol=1e-12)
    assert n == 3
    mean, weight = centroid_of(f"x{suffix}", "--columns", "b", "--weights", "a")
    np.testing.assert_allclose(mean, [(0.5 + 3 + 24) / 9], rtol=1e-12)
    assert weight == 9


def test_weights_in_a_file_are_those_of_the_library():
    weights = np.arange(60.0)
    np.save("w.npy", weights)
    saved = fitted("--weights", "w.npy")
    labels = saved["labels"]
    expected = [
        np.average(POINTS[labels == j], 0, weights[labels == j]) for j in range(3)
    ]
    np.testing.assert_allclose(saved["centroids"], expected, rtol=1e-12)
    np.testing.assert_allclose(saved["counts"], np.bincount(labels, weights))


@pytest.mark.parametrize("suffix", [".npy", ".csv"])
def test_a_million_columns_are_fitted(suffix):
    points = np.zeros((3, 1_000_000), np.int8)
    points[1:, 5] = 2, 4
    if suffix == ".npy":
        np.save("x.npy", points)
    else:
        lines = [",".join(row) for row in points.astype(str)]
        Path("x.csv").write_text("\n".join(lines))
    mean, _ = centroid_of(f"x{suffix}")
    assert mean.shape == (1_000_000,)
    assert mean[5] == 2


# What cannot.


def with_one(value):
    points = POINTS.copy()
    points[3, 1] = value
    return points


ARRAYS = {
    "complex": (POINTS + 1j, "complex128"),
    "text": (POINTS.astype(str), "real numbers"),
    "dates": (POINTS.astype("M8[s]"), "datetime64"),
    "objects": (POINTS.astype(object), "cannot be read"),
    "rank 0": (np.array(1.0), "[n, d], got shape ()"),
    "rank 1": (POINTS[0], "[n, d], got shape (3,)"),
    "rank 3": (POINTS[None], "[n, d], got shape (1, 60, 3)"),
    "no rows": (POINTS[:0], "got shape (0, 3)"),
    "no columns": (POINTS[:, :0], "got shape (60, 0)"),
    "nan": (with_one(np.nan), "row 3, column 1 (the first is 0) is nan"),
    "inf": (with_one(-np.inf), "row 3, column 1 (the first is 0) is -inf"),
    "k above n": (POINTS[:2], "n = 2 points, too few for -k 3"),
}


@pytest.mark.usefixtures("no_fit")
@pytest.mark.parametrize(("points", "fragment"), ARRAYS.values(), ids=ARRAYS)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_array_is_refused(points, fragment, suffix):
    file = f"x{suffix}"
    {".npy": np.save, ".npz": np.savez}[suffix](file, points)
    assert_refused(run("fit", file, "-k", 3, "--out", "c.npz"), file, fragment)
    assert not Path("c.npz").exists()


@pytest.mark.usefixtures("no_fit")
def test_the_row_that_is_named_is_that_of_the_file_in_any_block(monkeypatch):
    monkeypatch.setattr(reading, "BLOCK", 6)
    assert_refused(fit(points=with_one(np.nan)), "row 3, column 1 (the first is 0)")


@pytest.mark.usefixtures("no_fit")
def test_a_number_beyond_float32_is_refused_in_float32():
    outcome = fit("--dtype", "float32", points=with_one(1e300))
    assert_refused(outcome, "row 3, column 1", "1e+300, beyond float32")


BAD_TEXTS = {
    "word": ("1,2\n3,x\n", "row 1 (the first is 0; line 2), column 1", "'x'"),
    "word below a header": ("a,b\n1,2\n3,x\n", "row 1", "line 3), column 1"),
    "word in the first line": ("1,x\n1,2\n", "row 0", "column 1", "'x'"),
    "missing": ("1,2\n,4\n", "row 1", "column 0 is empty"),
    "missing in the first line": (",,\n1,2,3\n", "row 0", "column 0 is empty"),
    "too few fields": ("1,2\n3\n", "row 1", "2 fields", "got 1"),
    "too many fields": ("a,b\n1,2,3\n", "row 0", "2 fields", "got 3"),
    "too many fields later": ("1,2\n3,4\n5,1,000\n", "row 2", "line 3", "got 3"),
    "a text too many": ("a,b\n1,2\n3,4,x\n", "row 1", "line 3", "got 3"),
    "a quoted field too many": ('1,2\n3,4,"5"\n', "row 1", "got 3"),
    "half a quote": ('1,2\n3,"4\n5,6\n', "row 1", "line 2", "quote"),
    "text in a column": ("a,b\nu1,2\n", "row 0", "'u1'", "(see --columns)"),
    "a number above names": ("5,a\n1,2\n", "'a'", "(see --header, --columns)"),
    "decimal commas": ("1;2\n3;4,5\n", "'4,5'", "a point"),
    "header of another kind": ("a;b\n1,2\n", "row 0", "--delimiter ';'"),
    "digits of Arabic": ("1,2\n3,\u0663\n", "row 1", "column 1 is not a number"),
    "empty line": ("1,2\n\n3,4\n", "line 2 is empty"),
    "empty line in one column": ("1\n\n3\n", "line 2 is empty"),
    "empty line at the top": ("\n1,2\n", "line 1 is empty"),
    "semicolons": ("1;2\n3;4\n", "row 0", "'3;4'", "--delimiter ';'"),
    "tabs": ("1\t2\n3\t4\n", "row 0", "--delimiter tab"),
    "underscore": ("1,2\n3,1_0\n", "row 1", "column 1", "'1_0'"),
    "not a number": ("a,b\n1,2\n3,nan\n", "row 1, column 1", "nan"),
    "infinity": ("1,2\n-inf,4\n", "row 1, column 0", "-inf"),
    "header only": ("a,b\n", "no points"),
    "nothing": ("", "no points"),
    "empty lines only": ("\n \n", "no points"),
}


@pytest.mark.usefixtures("no_fit")
@pytest.mark.parametrize("case", BAD_TEXTS.values(), ids=BAD_TEXTS)
def test_text_is_refused(case):
    text, *fragments = case
    Path("x.csv").write_text(text, encoding="utf-8")
    options = ("--delimiter", ";") if "4,5" in text else ()
    assert_refused(run("fit", "x.csv", "-k", 2, *options), "x.csv", *fragments)


@pytest.mark.usefixtures("no_fit")
@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (("--columns", "b"), ("row 1", "4 fields", "got 5")),
        (("--columns", "a,a"), ("column 1 is given twice",)),
        (("--columns", "a,b", "--weights", "b"), ("column 2 is given twice",)),
        (("--columns", "c"), ("'c' is twice",)),
        (("--columns", "d"), ("no column 'd' of 4", "header has id, a, b, c")),
        (("--delimiter", "'"), ("--delimiter", "'tab'")),
        (("--delimiter", "5"), ("--delimiter", "'tab'")),
    ],
)
def test_columns_are_refused(options, fragments):
    head = "id,a,c,c" if "c" in options else "id,a,b,c"
    Path("x.csv").write_text(f"{head}\nu,1,2,3\nv,1,2,3,4\n")
    assert_refused(run("fit", "x.csv", "-k", 1, *options), *fragments)


def test_a_column_without_a_name_is_warned_of():
    Path("x.csv").write_text(",a\n0,1\n1,2\n")
    status, _, err = run("fit", "x.csv", "-k", 1)
    assert (status, err.count("\n")) == (0, 1)
    assert "warning: x.csv: column 0 has no name" in err
    assert run("fit", "x.csv", "-k", 1, "--columns", "a")[2] == ""


def test_columns_of_a_prediction_are_those_of_the_fit():
    Path("x.csv").write_text("a,b\n1,20\n2,10\n")
    Path("y.csv").write_text("b,a\n20,1\n10,2\n")
    Path("z.csv").write_text("20,1\n")
    run("fit", "x.csv", "-k", 2, "--out", "fit.npz")
    predict = "predict", "--fit", "fit.npz"
    assert_refused(run(*predict, "y.csv"), "y.csv: has columns b,a", "--columns a,b")
    status, out, _ = run(*predict, "y.csv", "--columns", "a,b", "--json")
    assert (status, json.loads(out)["loss"]) == (0, 0)
    assert run(*predict, "z.csv")[0] == 0  # Has no names.


@pytest.mark.usefixtures("no_fit")
@pytest.mark.parametrize("suffix", WRITERS)
def test_arrow_tables_are_refused(suffix):
    file = f"x{suffix}"
    WRITERS[suffix](pa.table(TABLE), file)
    outcome = run("fit", file, "-k", 2)
    assert_refused(outcome, "column 0 (id) of string", "--columns")
    assert_refused(run("fit", file, "-k", 2, "--columns", "c"), "'c'", "id, a, b")
    assert_refused(run("fit", file, "-k", 2, "--columns", "a,3"), "'3' of 3")
    WRITERS[suffix](pa.table({"a": [1.0, None]}), file)
    assert_refused(run("fit", file, "-k", 2), "row 1 (the first is 0)", "empty")
    Path(file).write_bytes(b"no table")
    assert_refused(run("fit", file, "-k", 2), f"cannot be read as {suffix}")


@pytest.mark.usefixtures("no_fit")
def test_without_pyarrow_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    Path("x.parquet").write_bytes(b"")
    outcome = run("fit", "x.parquet", "-k", 2)
    assert_refused(outcome, "x.parquet", 'pip install "diffkm[parquet]"')


@pytest.mark.usefixtures("no_fit")
def test_npz_without_the_array_lists_its_names():
    np.savez("x.npz", one=POINTS, two=POINTS)
    assert_refused(run("fit", "x.npz", "-k", 3), "x.npz", "'points'", "one, two")
    outcome = run("fit", "x.npz", "-k", 3, "--key", "three")
    assert_refused(outcome, "x.npz", "'three'", "one, two")


WEIGHTS = {
    "negative": (-np.ones(60), "not negative, got -1.0 in row 0"),
    "nan": (np.full(60, np.nan), "got nan in row 0"),
    "too few": (np.ones(59), "[60]", "(59,)"),
    "zero": (np.zeros(60), "not all be 0"),
    "text": (np.full(60, "a"), "real"),
}


@pytest.mark.usefixtures("no_fit")
@pytest.mark.parametrize("case", WEIGHTS.values(), ids=WEIGHTS)
def test_weights_are_refused(case):
    weights, *fragments = case
    np.save("w.npy", weights)
    assert_refused(fit("--weights", "w.npy"), "w.npy", *fragments)


@pytest.mark.usefixtures("no_fit")
def test_missing_and_damaged_weights_are_refused():
    assert_refused(fit("--weights", "none.npy"), "none.npy")
    assert_refused(fit("--weights", "w"), "argument --weights", ".npy")
    Path("w.npy").write_bytes(b"no array")
    assert_refused(fit("--weights", "w.npy"), "w.npy: cannot be read as .npy")


def spoiled(save):
    """The bytes of a file that is whole."""
    save("whole", POINTS)
    (whole,) = Path().glob("whole*")
    content = bytearray(whole.read_bytes())
    whole.unlink()
    return content


@pytest.mark.usefixtures("no_fit")
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv"])
def test_damaged_file_is_refused(suffix):
    file = Path(f"x{suffix}")
    npz = spoiled(np.savez)
    npz[900] ^= 255
    contents = {
        ".npy": [b"", b"no array", spoiled(np.save)[:500], pickle.dumps(POINTS)],
        ".npz": [b"", b"no archive", spoiled(np.savez)[:500], npz],
        ".csv": [b"\xff\xfe1,2", b"1,2\n\x80,3\n"],
    }
    what = "must be text in UTF-8" if suffix == ".csv" else "cannot be read as"
    for content in contents[suffix]:
        file.write_bytes(content)
        assert_refused(run("fit", file, "-k", 3), file.name, what)


@pytest.mark.usefixtures("no_fit")
def test_file_must_exist_and_be_a_file_of_a_known_kind():
    Path("folder.npy").mkdir()
    Path("x.xlsx").write_text("1,2")
    assert_refused(run("fit", "none.npy", "-k", 3), "none.npy: no such file")
    assert_refused(run("fit", "folder.npy", "-k", 3), "folder.npy is a directory")
    assert_refused(run("fit", "x.xlsx", "-k", 3), "x.xlsx", ".npy, .npz, .csv")
    assert_refused(run("fit", "x" * 300 + ".npy", "-k", 3), "xxx.npy", "too long")


@pytest.mark.usefixtures("no_fit")
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv"])
def test_unreadable_file_is_refused(monkeypatch, suffix):
    file = Path(f"x{suffix}")
    file.write_bytes(b"")
    opened = builtins.open

    def refuse(path, *arguments, **options):
        if str(path).endswith(file.name):
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(builtins, "open", refuse)
    monkeypatch.setattr("io.open", refuse)
    assert_refused(run("fit", file, "-k", 3), file.name, "Permission denied")


DOMAINS = [("kl_divergence", -1.0), ("itakura_saito", 0.0), ("cosine", 0.0)]


@pytest.mark.usefixtures("no_fit")
@pytest.mark.parametrize(("distance", "value"), DOMAINS)
def test_points_outside_the_domain_of_a_distance_are_refused(distance, value):
    points = np.abs(POINTS)
    points[4] = value
    outcome = fit("--distance", distance, points=points)
    assert_refused(outcome, "x.npy", "row 4")
