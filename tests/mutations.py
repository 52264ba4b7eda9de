"""Does the suite notice a bug? Plants small ones, one at a time, and runs the tests.

    python tests/mutations.py --coverage .coverage --json found.json

A mutation is a mistake that a person could make while moving code; `mutations.txt` has
them by file: what it means, the text that must be there once, and the text instead.
When code moves, file and texts follow it, and the meaning stays.

Each is planted in a copy of the tree. There the tests that reach its line run, `-x`, in
one process, the most specific first; then their files whole; and with `--whole`, all
others. It is *killed* by the first test that fails there and passes on
an unchanged copy. Which tests reach a line, say the data of a run of the same tree,

    pytest --cov=diffkm_jax --cov=diffkm_torch --cov-context=test

and without them all files do. (Files matter beside tests, because of several tests that
call a jitted function in one process only the first traces it.)

The environment is handed on: JAX_COMPILATION_CACHE_DIR, so that only programs that a
mutation changes are compiled, and XLA_FLAGS=--xla_backend_optimization_level=0.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
SLOW = [
    "test_pipelines",
    "test_float32_suite",
    "test_docstrings",
    "test_readme",
    "test_parity",
    "test_command_line",
    "test_notebooks",
]
FAILED = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - (.*))?$", re.MULTILINE)
REST = shutil.ignore_patterns(".git", "__pycache__", ".coverage*", ".*_cache", ".venv")


class Mutation(NamedTuple):
    """A mistake: what it means, where, and the text that makes it."""

    id: str
    meaning: str
    file: str
    line: int
    old: str
    new: str


class Outcome(NamedTuple):
    """What became of it: killed, survived, timed out or unclear; and by which test."""

    id: str
    meaning: str
    outcome: str
    by: str
    reason: str
    seconds: float


def table() -> list[Mutation]:
    """The mutations of `mutations.txt`, whose text must be there once."""
    found, file = [], ""
    lines = iter((ROOT / "tests/mutations.txt").read_text().splitlines())
    for line in filter(None, lines):
        if not line.startswith(" "):
            file = line
            continue
        name, meaning = line.strip().split(": ", 1)
        old, new = (next(lines).lstrip(" ").removeprefix(sign) for sign in "-+")
        text = (ROOT / file).read_text()
        if old == new or text.count(old) != 1:
            times = f"it is there {text.count(old)} times"
            raise SystemExit(f"{file}: {name}: {old!r} must be there once, {times}")
        number = text[: text.index(old)].count("\n") + 1
        found.append(Mutation(name, meaning, file, number, old, new))
    return found


@cache
def read(coverage: Path) -> tuple[dict[str, dict[int, set[str]]], Counter[str]]:
    """The tests that reach each line of each file, and how many lines each reaches."""
    from coverage import CoverageData

    data, by_file, size = CoverageData(str(coverage)), {}, Counter()
    data.read()
    for file in data.measured_files():
        by_file[file] = {
            line: {c.partition("|")[0] for c in contexts if "::" in c}
            for line, contexts in data.contexts_by_lineno(file).items()
        }
        for tests in by_file[file].values():
            size.update(tests)
    return by_file, size


def reaching(mutation: Mutation, coverage: Path | None) -> list[str]:
    """The tests that reach the line, in the order to run, or all files.

    Slow files last, files named as the module first; then those that reach few lines.
    """
    size, words = Counter[str](), set(re.findall("[a-z]+", mutation.file)[1:])
    if coverage is None:
        tests = {f"tests/{path.name}" for path in (ROOT / "tests").glob("test_*.py")}
    else:
        by_file, size = read(coverage)
        (lines,) = (v for k, v in by_file.items() if k.endswith("/" + mutation.file))
        tests = lines.get(mutation.line, set())

    def order(test: str) -> tuple:
        stem = Path(test.partition("::")[0]).stem
        late = SLOW.index(stem) + 1 if stem in SLOW else 0
        return late, -sum(word in stem for word in words), size[test], test

    return sorted(tests, key=order)


def run(tree: Path, tests: list[str], timeout: float, skipped: list[str]) -> str | None:
    """The output of pytest if a test failed, "" if none did, None if time ran out."""
    options = ["-x", "-q", "-n", "0", "--tb=no", "-p", "no:cacheprovider"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as names:
        print(*tests, *(f"--deselect={test}" for test in skipped), sep="\n", file=names)
        names.flush()
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *options, f"@{names.name}"],
            cwd=tree,
            env=os.environ | {"PYTHONPATH": str(tree), "COLUMNS": "300"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=max(timeout, 1))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return None
    return "" if process.returncode in (0, 5) else output


def judged(mutation: Mutation, clean: Path, options: argparse.Namespace) -> Outcome:
    """Plants a mutation in a copy of the tree, and runs stage by stage."""
    begin, tests = time.monotonic(), reaching(mutation, options.coverage)
    files = list(dict.fromkeys(test.partition("::")[0] for test in tests))
    stages = [tests, files if files != tests else []]
    if options.whole:
        every = reaching(mutation, None)
        stages.append([file for file in every if file not in files])

    def end(outcome: str, by: str = "", reason: str = "") -> Outcome:
        seconds = time.monotonic() - begin
        return Outcome(*mutation[:2], outcome, by, reason, round(seconds, 1))

    skipped: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=REST)
        path = tree / mutation.file
        path.write_text(path.read_text().replace(mutation.old, mutation.new))
        for number, stage in enumerate(stages):
            limit = options.timeout * (6 if number == 2 else 1)
            while stage:
                left = limit - (time.monotonic() - begin)
                output = run(tree, stage, left, skipped)
                if output is None:
                    return end("timed out", reason=f"after {limit:.0f} s")
                if not output:
                    break
                failed = FAILED.search(output)
                if failed is None:
                    return end("unclear", reason=output[-300:])
                by, reason = failed[1], failed[2] or ""
                if run(clean, [by], options.timeout, []) == "":
                    return end("killed", by, reason)
                skipped.append(by)
    return end("survived", reason=f"fails unchanged: {skipped}" if skipped else "")


def main() -> int:
    """Runs the mutations asked for, prints a table, and returns how many survived."""
    parser = argparse.ArgumentParser(description="Plants bugs, and runs the tests.")
    parser.add_argument("ids", nargs="*", help="of the mutations; none is all")
    parser.add_argument("--coverage", type=Path, help="data of a run with contexts")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where to write the outcomes")
    parser.add_argument("--timeout", type=float, default=600, help="seconds of each")
    parser.add_argument("--whole", action="store_true", help="survivors meet all files")
    options = parser.parse_args()
    known = {mutation.id: mutation for mutation in table()}
    if unknown := set(options.ids) - known.keys():
        parser.error(f"no such mutation: {sorted(unknown)}")
    chosen = [known[name] for name in options.ids or known]
    outcomes: list[Outcome] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        ThreadPoolExecutor(options.jobs) as do,
    ):
        clean = Path(folder) / "tree"
        shutil.copytree(ROOT, clean, ignore=REST)
        for found in do.map(lambda m: judged(m, clean, options), chosen):
            outcomes.append(found)
            print(f"{found.id:20} {found.outcome:9} {found.by}", flush=True)
            if options.json:
                text = json.dumps([o._asdict() for o in outcomes], indent=1)
                options.json.write_text(text + "\n")
    print(f"\n{'id':20} {'outcome':9} {'s':>5}  meaning; by what")
    for found in outcomes:
        print(f"{found.id:20} {found.outcome:9} {found.seconds:5.0f}  {found.meaning}")
        print(f"{'':38}{found.by} {found.reason[:150]}")
    missed = [found.id for found in outcomes if found.outcome != "killed"]
    print(f"\nkilled: {len(outcomes) - len(missed)} of {len(outcomes)}; not: {missed}")
    return len(missed)


if __name__ == "__main__":
    sys.exit(main())
