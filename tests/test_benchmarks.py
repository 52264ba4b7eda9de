"""The benchmarks: fair to both sides, and alive: they run, and print their tables."""

import importlib
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

import benchmarks.__main__ as main
from benchmarks import _measure, _records, _rivals, report
from benchmarks.__main__ import TOPICS, chosen

ROOT = Path(__file__).parents[1]
PAGES = [*(ROOT / "docs").rglob("*.md")]
DOCS = "\n".join(page.read_text() for page in sorted(PAGES))
KINDS, DERIVATIVES = ("hard", "soft"), ("implicit", "unrolled")
PROBLEMS = "three", "digits", "two of the three"
NAMES = [f"{topic}.{name}" for topic in TOPICS for _, name in chosen(topic)]


def contest(calls, fails=False, module=None):
    """Two sides that write down when they are called."""

    def agree(results):
        assert results == {"ours": "ours", "theirs": "theirs"}
        assert not fails, "the sides differ"
        return {"theirs": {"error": 0.5}}

    def side(name, module=None):
        def call():
            calls.append(name)
            return name

        return _measure.Side(lambda: _measure.Prepared(call, temporary_bytes=7), module)

    def build(n):
        calls.append(n)
        return _measure.Contest(
            {"ours": side("ours"), "theirs": side("theirs", module)}, agree
        )

    return build


def test_sides_are_compared_first_and_then_timed_in_turns(monkeypatch):
    monkeypatch.setattr(_measure, "PAUSE", 0.0)
    calls = []
    done = _measure.measure(contest(calls), rounds=3, burst=0, n=5)
    assert calls == [5, *["ours", "theirs"] * 4]
    assert [one for one in done["sides"]["theirs"]["seconds"] if one <= 0] == []
    assert done["parameters"] == {"n": 5}
    assert [len(of["seconds"]) for of in done["sides"].values()] == [3, 3]
    assert done["sides"]["theirs"]["error"] == 0.5
    assert done["sides"]["ours"]["temporary_bytes"] == 7


def test_sides_that_differ_are_not_timed():
    calls = []
    with pytest.raises(AssertionError, match="the sides differ"):
        _measure.measure(contest(calls, fails=True), rounds=3, n=5)
    assert calls == [5, "ours", "theirs"]


def test_a_rival_that_is_not_installed_is_left_out_and_said_to_be(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_kmeans", None)
    build = contest([], module="torch_kmeans")
    done = _measure.measure(build, rounds=0, n=5)
    assert set(done["sides"]) == {"ours"}
    assert done["left_out"]["theirs"].startswith("pip install torch_kmeans (")


def test_ratios_are_of_medians_with_their_range_over_the_rounds_and_goals_of_them():
    sides = {"ours": {"seconds": [1.0, 2.0, 4.0]}, "theirs": {"seconds": [3.0, 8.0, 8]}}
    done = _records.record(sides)
    _records.compare(done, "theirs", "ours", at_least=5)
    _records.compare(done, "ours", "theirs", at_most=5)
    _records.compare(done, "ours", "not here")
    first, second = done["ratios"]
    sides = {"above": "theirs", "below": "ours"}
    assert first == sides | {"value": 4.0, "low": 2.0, "high": 4.0}
    assert second["value"] == 0.25
    assert [one["met"] for one in done["goals"]] == [False, True]
    assert [one["bound"] for one in done["goals"]] == ["≥ 5", "≤ 5"]


@pytest.mark.slow
def test_a_peak_is_what_a_call_adds_in_a_process_of_its_own():
    of = json.dumps({"n": 20_000, "k": 100, "d": 2, "soft": False})
    grown = _measure.in_child(_measure.peak, "benchmarks.losses", "loss", "torch", of)
    array = 4 * 20_000 * 100  # [n, k] in float32: torch holds several, the inputs none.
    assert array < grown["peak_bytes"] < 20 * array


def test_the_torch_estimates_are_those_of_the_lineup():
    from benchmarks.estimators import lineup

    assert {*_rivals.TORCH_ESTIMATORS, *_rivals.TWINS} <= set(lineup(0.0))


def test_what_the_documentation_runs_is_there():
    commands = re.findall(r"`python\s+-m\s+benchmarks([^`]*)`", DOCS)
    assert len(commands) >= 6
    words = [word for command in commands for word in command.split()]
    options = {"--full", "--json", "FILE", "--picture", "PNG", "report"}
    options |= {"--resume", "--of"}
    for name in set(words) - options:
        assert chosen(name)


# Long runs ---------------------------------------------------------------------------


@pytest.fixture
def of_parts(monkeypatch):
    """A benchmark of three parts, of which each call is noted and one may fail."""
    taken, broken = [], []

    def take(name):
        taken.append(name)
        if name in broken:
            raise KeyboardInterrupt
        return _records.record({"ours": {"loss": [0.5]}})

    def three(size):
        for name in "abc":
            yield _records.Part({"problem": name}, partial(take, name))

    module = importlib.import_module("benchmarks.training")
    monkeypatch.setitem(module.BENCHMARKS, "autoencoder", three)
    return [("training", "autoencoder")], taken, broken


def test_a_run_that_was_stopped_goes_on_behind_its_last_part(of_parts, tmp_path):
    selected, taken, broken = of_parts
    file = tmp_path / "found.json"
    broken.append("b")
    with pytest.raises(KeyboardInterrupt):
        main.run(selected, "small", file)
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]
    before = main.known(file, "small")
    assert [one["parameters"] for one in before] == [{"problem": "a"}]
    broken.clear()
    done = main.run(selected, "small", file, before)
    assert taken == ["a", "b", "b", "c"]
    assert [one["parameters"]["problem"] for one in done["records"]] == ["a", "b", "c"]
    assert json.loads(file.read_text())["records"] == done["records"]
    main.run(selected, "small", file)  # Without it all is taken again.
    assert taken[4:] == ["a", "b", "c"]


def test_a_run_goes_on_with_its_own_records_only(of_parts, tmp_path):
    selected, _, _ = of_parts
    file = tmp_path / "found.json"
    assert main.known(file, "small") == []
    main.run(selected, "small", file)
    with pytest.raises(ValueError, match="is of the size small, not full"):
        main.known(file, "full")
    saved = json.loads(file.read_text())
    saved["environment"]["cores"] = 1000
    file.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match="of another machine: its cores differ"):
        main.known(file, "small")
    for text in ("{}", "[]", "no JSON"):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"must be what --json|Expecting value"):
            main.known(file, "small")


def test_the_best_setting_is_that_of_the_lowest_last_mean_over_seeds():
    sides = {
        "low once": {"train": [[0.0, 0.0], [1.0, 9.0]]},
        "best": {"train": [[9.0, 9.0], [4.0, 4.0]], "held out": [[0.0, 0.0]] * 2},
        "not finite": {"train": [[0.0, 0.0], [None, 0.0]]},
    }
    assert report.best(_records.record(sides)) == ("best", sides["best"])
    alone = {"not finite": sides["not finite"]}
    assert report.best(_records.record(alone)) is None


@pytest.mark.slow
def test_a_lane_is_trained_as_if_alone():
    """Of two seeds and two settings, and in two segments instead of one."""
    from benchmarks import training

    make = training.ESTIMATORS["reinmax_cv"]
    model = training.MODELS["8 × 16"]()._replace(rates=(1e-3,))
    settings = [(0.5, 1e-3), (1.5, 3e-3)]
    quiet = {"say": lambda text: None}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        size = training.Budget(6, 2, 2, 2)
        _, together = training.trained(model, make, settings, size, **quiet)
        size = training.Budget(6, 1, 1, 2)
        _, alone = training.trained(model, make, settings[1:], size, **quiet)
    for kept, other in zip(
        *map(jax.tree.leaves, (together[-1], alone[-1])), strict=True
    ):
        np.testing.assert_allclose(kept[0, 1], other[0, 0], rtol=1e-3, atol=1e-5)


# The whole suite, on tiny shapes -----------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The file of a small run, and what the run printed."""
    file = tmp_path_factory.mktemp("benchmarks") / "small.json"
    command = [sys.executable, "-m", "benchmarks", "--small", "--json", str(file)]
    run = subprocess.run(
        command,
        env=os.environ | {"XLA_FLAGS": ""},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return file, run.stdout


@pytest.mark.slow
def test_a_run_writes_down_what_was_measured_where(saved):
    found = json.loads(saved[0].read_text())
    assert found["size"] == "small"
    machine = found["environment"]
    assert machine["cores"] >= 1
    assert machine["processor"]
    assert min(machine["load_before"], machine["load_after"]) >= 0
    assert {"python", "jax", "jaxlib", "torch", "scikit-learn"} <= set(
        machine["versions"]
    )
    records = found["records"]
    assert list(dict.fromkeys(one["benchmark"] for one in records)) == NAMES
    for one in records:
        fields = "benchmark parameters sides ratios goals left_out notes"
        assert set(fields.split()) <= set(one)
        assert one["parameters"]
        samples = [of["seconds"] for of in one["sides"].values() if "seconds" in of]
        assert len({len(of) for of in samples}) <= 1
        for ratio in one["ratios"]:
            above, below = (
                one["sides"][ratio[key]]["seconds"] for key in ("above", "below")
            )
            value = statistics.median(above) / statistics.median(below)
            assert ratio["value"] == pytest.approx(value)
        for side in one["left_out"]:
            assert side in ("ott-jax", "torch_kmeans", "fast_pytorch_kmeans", "faiss")
    by_name = {one["benchmark"]: one["sides"] for one in records}
    first = {name: next(iter(sides.values())) for name, sides in by_name.items()}
    timed = {name for name, facts in first.items() if "seconds" in facts}
    assert timed == {
        *("losses.loss", "losses.newton", "losses.seed", "distances.manhattan"),
        *("passes.shapes", "distances.passes", "distances.spherical"),
        *("fits.gradient", "fits.rest", "fits.batch", "quality.reach", "quality.rest"),
        *("cluster.start", "cluster.seeds", "streams.passes"),
        *("estimators.evaluate", "training.steps"),
        *("bridge.calls", "bridge.loss", "reference.fit"),
    }
    assert set(by_name["losses.memory"]["diffkm"]) == {"peak_bytes", "temporary_bytes"}
    assert by_name["losses.memory"]["naive JAX"]["temporary_bytes"] > 4 * 2000 * 16
    assert by_name["losses.offset"]["diffkm"]["confirmed"] > 0.999
    assert by_name["fits.batch"]["scikit-learn"]["mean_inertia"] > 0
    assert by_name["compiling.ahead"]["fit"]["compile_seconds"] > 0.05
    start = by_name["compiling.start"]
    assert start["filled"]["cache_bytes"] > 1000
    assert start["filled"]["fit_seconds"] < start["none"]["fit_seconds"]


def of_any_steps(text):
    """The text without numbers of steps, in single spaces."""
    return " ".join(re.sub(r"[\d/ ]+ steps", " n steps", text).split())


@pytest.mark.slow
def test_the_report_prints_the_tables_of_the_readme_and_of_every_benchmark(saved):
    file, printed = saved
    text = report.render(json.loads(file.read_text()))
    assert text.strip() == printed.strip()
    tables = dict(re.findall(r"^### (.+)\n\n((?:\|.*\n)+)", text, re.MULTILINE))
    # The curves, and what was trained, have a table for each problem.
    trained = {"training.autoencoder", "training.polynomial"}
    plain = set(NAMES) - {"estimators.curves", "training.variance"} - trained
    curves = {f"{name}: bias, deviation, cosine" for name in PROBLEMS}
    curves |= {"8 × 16: bias, deviation, cosine along training"}
    curves |= {
        f"{name}: after 10 steps, ± of 2 seeds" for name in ("8 × 16", "p = 1.5")
    }
    documented = {
        "Value and gradient in the centroids": {"2000, 16, 8"},
        "A gradient through a fit, in the points": {
            *(f"{kind}, diffkm, {how}" for kind in KINDS for how in DERIVATIVES),
            *(f"{kind}, JAX, plain loop" for kind in KINDS),
            "hard, torch, plain loop",
            "hard, diffkm_torch, unrolled",
        },
    }
    assert set(tables) == plain | curves | set(documented) | {"Goals"}
    for title, rows in documented.items():
        head, _, *lines = tables[title].splitlines()
        assert of_any_steps(head) in of_any_steps(DOCS)
        labels = {line.split("|")[1].strip() for line in lines}
        assert labels - {"hard, ott-jax"} == rows
        assert all(re.search(r"\d", line.split("|")[2]) for line in lines)
    for lines in tables.values():
        assert len({line.count("|") for line in lines.splitlines()}) == 1
        assert len(lines.splitlines()) >= 3
    there = importlib.util.find_spec("ott") is not None
    assert there != ("not installed: pip install ott-jax" in text)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["estimators", "training"])
def test_the_pictures_are_drawn_from_the_file(name, saved, tmp_path):
    picture = tmp_path / f"{name}.png"
    command = [sys.executable, "-m", "benchmarks", "report", str(saved[0])]
    command += ["--picture", str(picture), "--of", name]
    subprocess.run(command, cwd=ROOT, check=True)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 20_000
