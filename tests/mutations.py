"""Does the suite notice a bug? Plants small ones, one at a time, and runs the tests.

    python tests/mutations.py --coverage .coverage --json found.json
    python tests/mutations.py --draw 200 --seed 0 --jobs 2

A mutation is a mistake that a person could make while moving code; `mutations.txt` has
them by file: what it means, the text that must be there once, and the text instead.
When code moves, file and texts follow it, and the meaning stays. Those of `--draw` are
drawn from all that cosmic-ray knows to make of the modules in `DRAWN`.

Each is planted in a copy of the tree. There the tests that reach its line run, `-x`, in
one process, the most specific first; then their files whole; and with `--whole`, all
others. It is *killed* by the first test that fails, if that passes unchanged. Which
tests reach a line, say the data of a run of the same tree,

    pytest --cov=diffkm_jax --cov=diffkm_torch --cov-context=test

and files of which they say nothing run whole. (So do all files in the end, because a
jitted function is traced by the first test of a process that calls it, and no other.)
Without such data `DRAWN` says which files test a module.

The environment is handed on, so that with JAX_COMPILATION_CACHE_DIR only programs that
a mutation changes are compiled.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
SLOW = [
    "test_pipelines",
    "test_other_settings",
    "test_docstrings",
    "test_docs",
    "test_parity",
    "test_command_line",
    "test_command_line_files",
    "test_command_line_output",
    "test_notebooks",
]
FITS = (
    "test_layout.py test_fit_parts.py test_implicit.py test_fitting.py "
    "test_empty_clusters.py test_fit_derivatives.py test_fit_far_away.py "
    "test_fit_units.py test_many_fits.py test_fit_programs.py test_raises.py "
    "test_compilations.py test_restarts.py"
)
PASSES = (
    "test_layout.py test_statistics.py test_export.py test_losses.py test_fit_parts.py "
    "test_fitting.py test_inert_rows.py test_far_away_and_cold.py test_shapes.py "
    "test_certificate.py test_raises.py test_fit_far_away.py"
)
DRAWN = {
    "diffkm_jax/_statistics.py": PASSES,
    "diffkm_jax/losses.py": (
        "test_losses.py test_inert_rows.py test_raises.py test_export.py test_mesh.py"
    ),
    "diffkm_jax/_pass.py": PASSES,
    "diffkm_jax/_soft_pass.py": PASSES,
    "diffkm_jax/_distance_pass.py": "test_nearest.py test_losses.py " + FITS,
    "diffkm_jax/_blocks.py": PASSES,
    "diffkm_jax/_geometry.py": PASSES,
    "diffkm_jax/optimizers.py": "test_optimizers.py " + FITS,
    "diffkm_jax/assignments/*.py": (
        "test_assignments.py test_declared.py test_assignment_agreement.py "
        "test_assignment_transforms.py test_far_away_and_cold.py test_infinite.py "
        "test_estimators.py test_raises.py"
    ),
    "diffkm_jax/estimators/*.py": (
        "test_layout.py test_estimator_raises.py test_estimators.py "
        "test_estimator_agreement.py test_reports.py "
        "test_diagnostics.py test_compilations.py"
    ),
    "diffkm_jax/fitting/*.py": FITS,
}
BITS = {"BitAnd", "BitOr", "BitXor", "LShift", "RShift", "Invert"}
FAILED = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - (.*))?$", re.MULTILINE)
REST = shutil.ignore_patterns(".git", "__pycache__", ".coverage*", ".*_cache", ".venv")


class Mutation(NamedTuple):
    """A mistake: what it means, where, and the text that makes it."""

    id: str
    meaning: str
    file: str
    line: int
    text: str


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
        found.append(Mutation(name, meaning, file, number, text.replace(old, new)))
    return found


def drawn(number: int, seed: int) -> list[Mutation]:
    """So many of the mutations that cosmic-ray makes, but of what does not run."""
    from cosmic_ray import mutating, plugins  # pyright: ignore[reportMissingImports]
    from cosmic_ray.ast import ast_nodes, get_ast  # pyright: ignore

    def operators() -> Iterator[tuple[str, Any]]:
        for name in sorted(plugins.operator_names()):
            operator = plugins.get_operator(name)
            # Operators on bits, where there were numbers, are errors that any test
            # finds, as are numbers' on masks.
            if len({word in BITS for word in name.split("_")[1:]}) > 1:
                continue
            if not operator.arguments() and "NoOp" not in name:
                yield name, operator()

    places = []
    for pattern in DRAWN:
        for path in sorted(ROOT.glob(pattern)):
            nodes = list(ast_nodes(get_ast(path.read_text())))
            for name, operator in operators():
                spans = [s for n in nodes for s in operator.mutation_positions(n)]
                places += [(path, name, operator, *at) for at in enumerate(spans)]
    random.Random(seed).shuffle(places)
    found = []
    for path, name, operator, index, ((line, _), _) in places:
        old = path.read_text()
        new = mutating.mutate_code(old, operator, index)
        if new is None or what_runs(new) in ("", what_runs(old)):
            continue
        file = str(path.relative_to(ROOT))
        was, then = (text.splitlines()[line - 1].strip() for text in (old, new))
        meaning = f"{file}:{line}: {name.removeprefix('core/')}: {was} → {then}"
        found.append(Mutation(f"drawn-{seed}-{len(found)}", meaning, file, line, new))
        if len(found) == number:
            break
    return found


def what_runs(text: str) -> str:
    """A module without annotations, docstrings and what is for type checkers only.

    Nothing, if it is no Python: a * alone among arguments is no product.
    """
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return ""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value = ast.Constant(None)
    return ast.dump(tree)


@cache
def read(coverage: Path) -> tuple[dict[str, dict[int, set[str]]], Counter[str]]:
    """The tests that reach each line of each file, and how many lines each reaches."""
    from coverage import CoverageData  # pyright: ignore[reportMissingImports]

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


def stages_of(mutation: Mutation, coverage: Path | None) -> list[list[str]]:
    """What to run, one after the other, as arguments of pytest.

    The tests that reach the line, and files named as the module of which no data are
    known; then the files of the former whole, and all without data; then all others.
    """
    by_file, size = read(coverage) if coverage else ({}, Counter[str]())
    if coverage is None:
        pattern = next((p for p in DRAWN if Path(mutation.file).match(p)), None)
        return [[f"tests/{name}"] for name in DRAWN.get(pattern, "").split()] + [[]]
    every = {f"tests/{path.name}" for path in (ROOT / "tests").glob("test_*.py")}
    unknown = every - {file_of(test) for test in size}
    words = set(re.findall("[a-z]{3,}", mutation.file.rstrip("s")))

    def of_module(test: str) -> int:
        return sum(word.rstrip("s") in file_of(test)[6:] for word in words)

    def order(test: str) -> tuple:
        stem = Path(file_of(test)).stem
        late = SLOW.index(stem) + 1 if stem in SLOW else 0
        return late, -of_module(test), size.get(test, 10**6), test

    found: set[str] = set()
    for file, lines in by_file.items():
        if file.endswith("/" + mutation.file):
            found = lines.get(mutation.line, set())
    own = set(filter(of_module, unknown))
    files = {file_of(test) for test in found} | unknown
    return [sorted(s, key=order) for s in (found | own, files - own, every - files)]


def file_of(test: str) -> str:
    return test.partition("::")[0]


def run(tree: Path, names: list[str], timeout: float, *options: str) -> str | None:
    """The output of pytest if a test failed, "" if none did, None if time ran out."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "--tb=no", *options]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as listed:
        print(*names, sep="\n", file=listed, flush=True)
        process = subprocess.Popen(
            [*command, "-p", "no:cacheprovider", f"@{listed.name}"],
            cwd=tree,
            env=os.environ | {"PYTHONPATH": str(tree), "COLUMNS": "300"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return None
    return "" if process.returncode in (0, 5) else output


def outcome_of(
    mutation: Mutation, options: argparse.Namespace, flawed: set[str]
) -> Outcome:
    """Plants a mutation in a copy of the tree, and runs tests until one fails."""
    begin = time.monotonic()
    *reaching, others = stages_of(mutation, options.coverage)

    def end(outcome: str, by: str = "", reason: str = "") -> Outcome:
        seconds = time.monotonic() - begin
        return Outcome(*mutation[:2], outcome, by, reason, round(seconds, 1))

    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=REST)
        path = tree / mutation.file
        path.write_text(mutation.text)
        for names in [*reaching, others] if options.whole else reaching:
            left = options.timeout - (time.monotonic() - begin)
            names = names and [*names, *(f"--deselect={test}" for test in flawed)]
            output = run(tree, names, max(left, 1), "-x") if names else ""
            if output is None:
                return end("timed out", reason=f"after {options.timeout:.0f} s")
            if failed := FAILED.search(output):
                return end("killed", failed[1], failed[2] or "")
            if output:
                return end("unclear", reason=output[-300:])
    return end("survived")


def main() -> int:
    """Runs the mutations asked for, prints a table, and returns how many survived."""
    parser = argparse.ArgumentParser(description="Plants bugs, and runs the tests.")
    parser.add_argument("ids", nargs="*", help="of the mutations; none is all")
    parser.add_argument("--coverage", type=Path, help="data of a run with contexts")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where to write the outcomes")
    parser.add_argument("--timeout", type=float, default=600, help="seconds of each")
    parser.add_argument("--draw", type=int, help="how many, instead of the table's")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--whole", action="store_true", help="survivors meet all files")
    options = parser.parse_args()
    mutations = drawn(options.draw, options.seed) if options.draw else table()
    known = {mutation.id: mutation for mutation in mutations}
    if unknown := set(options.ids) - known.keys():
        parser.error(f"no such mutation: {sorted(unknown)}")
    todo = chosen = [known[name] for name in options.ids or known]
    found: dict[str, Outcome] = {}
    flawed: set[str] = set()
    plant = partial(outcome_of, options=options, flawed=flawed)
    while todo:
        with ThreadPoolExecutor(options.jobs) as pool:
            for done in pool.map(plant, todo):
                found[done.id] = done
                print(f"{done.id:20} {done.outcome:9} {done.by}", flush=True)
                if options.json:
                    text = json.dumps([o._asdict() for o in found.values()], indent=1)
                    options.json.write_text(text + "\n")
        # What fails on the unchanged tree, too, says nothing of a mutation.
        by = sorted({done.by for done in found.values()} - {""} - flawed)
        output = run(ROOT, by, 6 * options.timeout) if by else ""
        flawed.update(by if output is None else (f[0] for f in FAILED.findall(output)))
        todo = [mutation for mutation in chosen if found[mutation.id].by in flawed]
    print(f"\n{'id':20} {'outcome':9} {'s':>5}  meaning; by what")
    for done in found.values():
        print(f"{done.id:20} {done.outcome:9} {done.seconds:5.0f}  {done.meaning}")
        print(f"{'':38}{done.by} {done.reason[:150]}")
    missed = [done.id for done in found.values() if done.outcome != "killed"]
    print(f"\nkilled: {len(found) - len(missed)} of {len(found)}; not: {missed}")
    return len(missed)


if __name__ == "__main__":
    sys.exit(main())
