"""compare_gradients: honest twins pass, planted defects are caught and named."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from defects import (
    CORNERS,
    DEFECTS,
    FIRST,
    GRID,
    A,
    BackwardOnly,
    C,
    P,
    T,
    W,
    X,
    check_named,
    last_of_ties,
    ours,
    spoiled,
    with_leaf,
)
from problems import honest_twins

import diffkm_jax as dk
import diffkm_torch as dt
from diffkm_torch.agreement import assert_gradients_agree, compare_gradients

RNG = np.random.default_rng(0)
LOSS = "output['loss']"


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_caught_and_its_leaf_and_side_named(name):
    defect = DEFECTS[name]
    options = {"jit": False, "dtypes": ["float64"], **defect.options}
    report = compare_gradients(defect.jax_fn, defect.torch_fn, *defect.args, **options)
    assert not report.agree
    check_named(report, defect)


@pytest.mark.parametrize("name", FIRST)
def test_a_planted_defect_is_caught_under_jit(name):
    jax_fn, torch_fn, args, leaf, *_ = FIRST[name]
    with pytest.raises(AssertionError, match="GRADIENTS DISAGREE") as failed:
        assert_gradients_agree(jax_fn, torch_fn, *args, dtypes=["float64"])
    assert f"/ d {leaf}" in str(failed.value)


@pytest.mark.parametrize("name", [n for n in FIRST if "sign" in n or "zero" in n])
def test_only_the_leaf_with_the_defect_disagrees(name):
    jax_fn, torch_fn, args, leaf, *_ = DEFECTS[name]
    report = compare_gradients(jax_fn, torch_fn, *args, jit=False)
    assert {pair.input for pair in report.disagreements} == {leaf}
    assert {pair.dtype for pair in report.disagreements} == {"float64", "float32"}
    assert {pair.kind for pair in report.disagreements} == {"gradient"}


@pytest.mark.parametrize(
    "first",
    [pytest.param(i, marks=[pytest.mark.slow] * (i >= 20)) for i in range(0, 200, 20)],
)
def test_honest_twins_agree_and_in_float64_most_rows_are_judged(first):
    rows = unjudged = 0
    for i in range(first, first + 20):
        twins, args, kwargs, kind = honest_twins(i)
        report = compare_gradients(*twins, *args, kwargs=kwargs, jit=False)
        assert report.agree, f"problem {i}, {kind}\n{report}"
        wide = [p for p in report.pairs if p.dtype == "float64"]
        rows += sum(p.num_rows for p in wide)
        unjudged += sum(p.num_unresolved + p.num_kinks for p in wide)
    assert unjudged < 0.03 * rows


def test_a_gradient_that_is_rounding_is_unresolved_and_never_agreement():
    x = RNG.normal(size=(30, 3))
    mean = x.mean(0, keepdims=True)
    report = compare_gradients(dk.kmeans_loss, dt.kmeans_loss, x, mean, jit=False)
    found = {(p.dtype, p.input): p for p in report.pairs if p.kind == "gradient"}
    for dtype in ("float64", "float32"):
        assert found[dtype, "arg1"].verdict == "unresolved"
        assert found[dtype, "arg0"].verdict == "agree"
    assert report.agree
    assert report.unjudged > 0
    with pytest.raises(AssertionError, match="not judged, more than 0"):
        assert_gradients_agree(
            dk.kmeans_loss, dt.kmeans_loss, x, mean, jit=False, max_unjudged=0
        )


def test_a_tie_rule_is_judged_in_both_precisions():
    report = compare_gradients(dk.kmeans_loss, last_of_ties, GRID, CORNERS)
    verdicts = {(p.dtype, p.input): p.verdict for p in report.pairs if p.input}
    assert verdicts["float64", "arg0"] == verdicts["float64", "arg1"] == "disagree"
    assert verdicts["float32", "arg0"] == verdicts["float32", "arg1"] == "disagree"
    honest = compare_gradients(dk.kmeans_loss, dt.kmeans_loss, GRID, CORNERS)
    assert {p.verdict for p in honest.pairs if p.dtype == "float64"} == {"agree"}


def test_labels_are_compared_exactly():
    report = compare_gradients(dk.assign, dt.assign, X, C)
    assert [p.verdict for p in report.pairs] == ["agree", "agree"]
    one_off = compare_gradients(
        dk.assign, lambda x, c: (dt.assign(x, c) + (x[:, 0] > 1)) % 4, X, C
    )
    assert one_off.pairs[0].num_off == (X[:, 0] > 1).sum()
    assert {p.verdict for p in one_off.pairs} == {"disagree"}


def test_who_is_wrong_is_said():
    jax_fn, torch_fn, args, *_ = DEFECTS["a factor 1/n"]
    (pair, *_) = compare_gradients(jax_fn, torch_fn, *args).disagreements
    assert "torch's is 0.05 times jax's" in pair.note
    assert "torch's is not the slope of its own values, jax's is" in pair.note


def test_who_rounds_too_much_in_float32_is_said():
    def rounded(gradient):
        narrow = torch.promote_types(gradient.dtype, torch.bfloat16)
        is_wide = narrow == torch.float64
        return gradient if is_wide else gradient.bfloat16().to(narrow)

    torch_fn = with_leaf("points", lambda x: spoiled(x, rounded))
    (pair,) = compare_gradients(ours, torch_fn, P, T).disagreements
    assert (pair.dtype, pair.input) == ("float32", "arg0['points']")
    assert pair.errors is not None
    assert pair.errors[1] > 1e-4 > 1e-6 > pair.errors[0]


def test_what_is_wrong_only_without_jit_is_found():
    def differs(x):
        is_compiled = isinstance(jnp.zeros(()), jax.core.Tracer)
        return (x**2).sum() * (1.0 if is_compiled else 2.0)

    def square(x):
        return (x**2).sum()

    report = compare_gradients(differs, square, X, dtypes=["float64"])
    assert [p.verdict for p in report.pairs] == ["disagree"] * 2
    assert all(p.note.startswith("only without jit") for p in report.pairs)
    options = {"jit": False, "dtypes": ["float64"]}
    assert compare_gradients(differs, lambda x: 2 * square(x), X, **options).agree


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_second_order_and_forward_mode_are_compared_on_request():
    def cube(x, t):
        return {"sum": (x**3).sum() * t, "row": x[0] * t}

    report = compare_gradients(cube, cube, X, 0.5, order=2, forward=True, jit=False)
    assert report.agree
    kinds = [p.kind for p in report.pairs if p.dtype == "float64"]
    assert {k: kinds.count(k) for k in kinds} == {
        "value": 2,
        "gradient": 4,
        "tangent": 4,
        "second": 8,
    }

    def flat(x, t):
        g = spoiled(x, lambda g: g.detach() if g.requires_grad else g)
        return cube(g, t)

    report = compare_gradients(cube, flat, X, 0.5, order=2, jit=False)
    assert {p.kind for p in report.disagreements} == {"second"}
    assert compare_gradients(cube, flat, X, 0.5, jit=False).agree


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_forward_mode_is_torchs_own():
    report = compare_gradients(jnp.sin, BackwardOnly.apply, X, forward=True, jit=False)
    assert {p.kind for p in report.disagreements} == {"tangent"}
    assert "signs are opposite" in report.disagreements[0].note


class Params(NamedTuple):
    scale: np.ndarray
    shift: list


def test_trees_go_in_and_out_and_keep_their_names():
    def affine(params, x, *, power, mask):
        y = params.scale * x[None, :, 0] + params.shift[0]
        return {"y": y**power, "n": (y > 0) & mask[None], "both": (y, y.sum())}

    args = Params(A[:2, :1], [np.float32(0.5)]), jnp.asarray(X[:4])
    kwargs = {"power": 2, "mask": np.array([True, False, True, True])}
    report = compare_gradients(affine, affine, *args, kwargs=kwargs)
    assert report.agree
    names = {(p.output, p.input) for p in report.pairs}
    assert ("output['both'][1]", "arg0.shift[0]") in names
    assert ("output['y']", "arg0.scale") in names
    assert report.held == {"power": "2"}
    assert "held constant: power = 2" in str(report)


def test_wrt_chooses_what_is_differentiated():
    options = {"kwargs": {"weights": W}, "jit": False}
    for wrt, inputs in [
        (0, {"arg0"}),
        ("weights", {"weights"}),
        ([1, 0], {"arg0", "arg1"}),
    ]:
        report = compare_gradients(
            dk.kmeans_loss, dt.kmeans_loss, X, C, wrt=wrt, **options
        )
        assert {p.input for p in report.pairs} - {""} == inputs


@pytest.mark.parametrize("cotangent", ["ones", A[:, :3]])
def test_the_cotangent_is_the_one_given(cotangent):
    seen = []

    def noted(c):
        return spoiled(c, lambda g: seen.append(g.numpy().copy()) or g)

    compare_gradients(lambda c: c, noted, C, cotangent=cotangent, jit=False)
    expected = np.ones((4, 3)) if isinstance(cotangent, str) else cotangent
    np.testing.assert_array_equal(seen[0], expected)


def test_cotangents_are_not_the_inputs_of_a_user_of_the_same_seed():
    seen = []
    x = np.random.default_rng(0).normal(size=(4, 3))
    compare_gradients(
        lambda c: c,
        lambda c: spoiled(c, lambda g: seen.append(g.numpy().copy()) or g),
        x,
        jit=False,
    )
    assert np.abs(seen[0] - x).min() > 1e-3


def test_rounding_that_no_move_changes_is_no_disagreement():
    def centered(x):
        return (x - x.mean(0)).sum()

    for seed in range(3):
        x = np.random.default_rng(seed).normal(size=(8, 5))
        report = compare_gradients(
            lambda x: jnp.sum(x - jnp.mean(x, axis=0, keepdims=True)), centered, x
        )
        assert report.disagreements == ()
        assert report.agree == (report.unjudged < 1)


def test_large_integers_are_compared_exactly():
    i = np.array([2**60, 3])
    report = compare_gradients(
        lambda x, i: (x, i), lambda x, i: (x, i + (i > 9)), X, i, jit=False
    )
    assert {p.output for p in report.disagreements} == {"output[1]"}
    assert {p.num_off for p in report.disagreements} == {1}


@pytest.mark.parametrize("shape", [(3, 0), (0, 3), (0,)])
def test_empty_arrays_do_not_disagree(shape):
    report = compare_gradients(lambda x: 2 * x, lambda x: 2 * x, np.zeros(shape))
    assert report.disagreements == ()
    assert report.unresolved == ("value", "gradient")
    assert report.unjudged == 1


def test_infinite_values_agree_without_a_warning():
    x = np.array([[0.0, 1.0, 2.0]])
    assert compare_gradients(jnp.log, torch.log, x).agree
    assert not compare_gradients(jnp.log, lambda x: -torch.log(x), x).agree


def test_an_infinite_value_hides_no_gradient_of_another_row():
    def left(x):
        return torch.where(x >= 0, x, x / 2)

    x = np.array([0.0, 1.0, np.inf])
    report = compare_gradients(lambda x: jnp.where(x > 0, x, x / 2), left, x)
    verdicts = {(p.dtype, p.kind): p.verdict for p in report.pairs}
    assert verdicts["float64", "gradient"] == "disagree"
    assert verdicts["float32", "gradient"] == "disagree"


def test_a_tolerance_of_the_user_is_kept():
    def off(x):
        return (1 + 1e-7) * x

    assert not compare_gradients(lambda x: x, off, X, dtypes=["float64"]).agree
    for tol in (1e-6, {"float64": 1e-6}):
        assert compare_gradients(lambda x: x, off, X, tol=tol).agree


def test_the_report_is_json_and_names_every_pair():
    report = compare_gradients(*DEFECTS["a NaN in one entry"][:2], P, T, jit=False)
    there = json.loads(json.dumps(report.to_dict()))
    assert there["agree"] is False
    assert len(there["pairs"]) == len(report.pairs) == 2 * (1 + 4)
    (bad,) = (
        p for p in there["pairs"] if p["verdict"] == "disagree" and "64" in p["dtype"]
    )
    assert (bad["name"], bad["num_off"]) == (f"d {LOSS} / d arg0['points']", 1)
    assert bad["worst"] == [2, 1]
    assert "NaN or infinities that differ: 1 entries" in bad["note"]


def test_the_inputs_are_left_as_they_are():
    tensor, array = torch.tensor(X, requires_grad=True), C.copy()
    compare_gradients(dk.kmeans_loss, dt.kmeans_loss, tensor, array, jit=False)
    assert tensor.grad is None
    np.testing.assert_array_equal(array, C)


def same(x):
    return x


def total(x):
    return x.sum()


RAISES = [
    (same, lambda x: x.sum().item(), (X,), {}, TypeError, "torch_fn .*float as output"),
    (lambda x: 1.0, same, (X,), {}, TypeError, "jax_fn .*got float as output:"),
    (lambda x: {"a": "s"}, same, (X,), {}, TypeError, r"got str as output\['a'\]"),
    (same, lambda x: x.to(torch.complex128), (X,), {}, TypeError, "real arrays"),
    (lambda x: {"a": x}, same, (X,), {}, ValueError, r"only jax_fn .*output\['a'\]"),
    (lambda x: (), lambda x: (), (X,), {}, ValueError, "at least one array"),
    (same, lambda x: x.T, (X,), {}, ValueError, r"shape in both: .*\(3, 20\)"),
    (same, lambda x: x.float(), (X,), {}, TypeError, "dtype in both: .*float32"),
    (total, lambda x: x.detach().sum(), (X,), {}, ValueError, "no output requires"),
    (same, lambda x: x + torch.rand(()), (X,), {}, ValueError, "changed by .*noise"),
    (same, same, (X.astype(int),), {}, ValueError, "at least one floating array"),
    (
        lambda x, i: x,
        lambda x, i: x,
        (X, np.arange(3)),
        {"wrt": 1},
        TypeError,
        "arg1 is int64",
    ),
    (same, same, (X,), {"wrt": 3}, ValueError, r"among \[0\], got 3"),
    (same, same, (X,), {"wrt": []}, ValueError, "at least one argument"),
    (same, same, (X,), {"dtypes": "float64"}, ValueError, "dtypes .*'float64'"),
    (same, same, (X,), {"dtypes": ["float16"]}, ValueError, "dtypes .*float16"),
    (same, same, (X,), {"cotangent": "zeros"}, ValueError, "cotangent .*'zeros'"),
    (same, same, (X,), {"cotangent": C}, ValueError, r"cotangent .*\(4, 3\)"),
    (same, same, (X,), {"order": 3}, ValueError, "order must be 1 or 2, got 3"),
    (same, same, (X,), {"tol": float("nan")}, ValueError, "tol must be .*got nan"),
    (same, same, (X,), {"tol": -1.0}, ValueError, "tol must be .*got -1.0"),
    (same, same, (X,), {"tol": {"f64": 1e-3}}, ValueError, "tol must be .*'f64'"),
    (None, same, (X,), {}, TypeError, "jax_fn must be a function"),
    (same, "f", (X,), {}, TypeError, "torch_fn must be a function, got 'f'"),
    (same, same, (torch.ones(2, device="meta"),), {}, ValueError, "device meta"),
    (same, same, (X, jax.random.key(0)), {}, TypeError, "arg1 is a random key"),
    (same, same, (X * 1j,), {}, TypeError, "arg0 must be floating, .*complex128"),
]


@pytest.mark.parametrize(
    ("jax_fn", "torch_fn", "args", "options", "error", "message"), RAISES
)
def test_every_error_says_what_to_change(
    jax_fn, torch_fn, args, options, error, message
):
    with pytest.raises(error, match=message):
        compare_gradients(jax_fn, torch_fn, *args, **options)
    with pytest.raises(error, match=message):
        assert_gradients_agree(jax_fn, torch_fn, *args, **options)


def test_an_error_of_a_function_says_whose_it_is():
    def fails(x):
        raise ArithmeticError("mine")

    with pytest.raises(ArithmeticError, match="mine") as caught:
        compare_gradients(same, fails, X)
    assert "torch_fn on arrays float64[20, 3]" in caught.value.__notes__[0]


def test_the_error_shows_the_report_line_by_line():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 2))
    ours, theirs = (lambda x: (x**2).sum()), (lambda x: 2 * (x**2).sum())
    with pytest.raises(AssertionError) as failed:
        assert_gradients_agree(ours, theirs, x, dtypes=["float64"])
    assert str(failed.value).startswith("GRADIENTS DISAGREE")
    with pytest.raises(AssertionError, match="more than -1\nGradients agree"):
        assert_gradients_agree(ours, ours, x, dtypes=["float64"], max_unjudged=-1)


# Nothing to judge ---------------------------------------------------------------------


def squares(x):
    return (x**2).sum(-1)


def thrice(x):
    return 3 * squares(x)


@pytest.mark.parametrize(
    ("x", "share"),
    [
        (np.full((3, 4), np.nan), 1),
        (np.full((3, 4), np.inf), 1),
        (np.zeros((0, 4)), 1),
        (np.zeros((3, 0)), 0),
    ],
    ids=["NaN", "infinity", "no row", "no column"],
)
def test_where_nothing_is_a_number_nothing_agrees(x, share):
    report = compare_gradients(squares, thrice, x)
    assert report.disagreements == ()
    assert "gradient" in report.unresolved
    assert not report.agree
    assert report.unjudged == share
    assert " could be judged in 4 comparisons" in str(report)
    with pytest.raises(AssertionError, match="could be judged"):
        assert_gradients_agree(squares, thrice, x)


def test_gradients_that_are_nan_on_both_sides_do_not_agree():
    def root(x):
        return squares(x) ** 0.5

    report = compare_gradients(root, root, np.zeros((3, 4)))
    assert [p.verdict for p in report.pairs] == 2 * ["agree", "unresolved"]
    assert report.unresolved == ("gradient",)
    assert not report.agree
    assert str(report).startswith("No gradient could be judged in 4 comparisons; 50 %")


def test_nan_on_one_side_disagrees():
    report = compare_gradients(
        lambda x: squares(x) ** 0.5,
        lambda x: torch.linalg.norm(x, dim=-1),
        np.zeros((3, 4)),
    )
    assert [p.verdict for p in report.pairs] == 2 * ["agree", "disagree"]


def test_a_row_with_some_nan_is_judged_by_its_numbers():
    x = RNG.normal(size=(3, 4))
    x[0, 1] = np.nan
    pair = jnp.sin, torch.sin
    report = compare_gradients(*pair, x)
    assert report.agree
    assert report.unjudged == 0
    assert not compare_gradients(jnp.sin, lambda x: 1.01 * torch.sin(x), x).agree
    x[0] = np.nan
    report = compare_gradients(*pair, x)
    assert report.agree
    np.testing.assert_allclose(report.unjudged, 1 / 3)


# Output of pytest ---------------------------------------------------------------------

FAILING = """\
from diffkm_torch.agreement import assert_gradients_agree
import numpy as np


def squares(x):
    return (x**2).sum()


def doubled(x):
    return 2 * (x**2).sum()


def test_they_agree():
    x = np.arange(6.0).reshape(3, 2)
    assert_gradients_agree(squares, doubled, x, dtypes=["float64"])


def test_most_is_judged():
    x = np.arange(6.0).reshape(3, 2)
    assert_gradients_agree(squares, squares, x, jit=False, max_unjudged=-1)
"""


@pytest.mark.parametrize("style", ["long", "short"])
def test_under_pytest_a_failure_is_the_table_without_frames_of_the_library(
    tmp_path, style
):
    (tmp_path / "test_of_a_user.py").write_text(FAILING)
    plain = "-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--tb={style}"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *plain, "test_of_a_user.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(dk.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1, run.stdout + run.stderr
    assert "2 failed" in run.stdout
    frames = re.findall(r"^(\S+\.py):\d+:", run.stdout, re.MULTILINE)
    assert set(frames) == {"test_of_a_user.py"}
    for source in ("__tracebackhide__", "raise AssertionError", "compare_gradients("):
        assert source not in run.stdout
    x = np.arange(6.0).reshape(3, 2)
    with pytest.raises(AssertionError) as failed:
        assert_gradients_agree(total_square, twice, x, dtypes=["float64"])
    table = str(failed.value).strip().splitlines()
    printed = [
        line.removeprefix("E").strip().removeprefix("AssertionError: ")
        for line in run.stdout.splitlines()
        if line.startswith("E ")
    ]
    begin = printed.index(table[0])
    assert printed[begin : begin + len(table)] == [line.strip() for line in table]


def total_square(x):
    return (x**2).sum()


def twice(x):
    return 2 * (x**2).sum()
