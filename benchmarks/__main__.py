"""The command line of the benchmarks: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from pathlib import Path

import jax

import benchmarks
from benchmarks import _records, report

TOPICS = (
    "losses",
    "passes",
    "distances",
    "fits",
    "quality",
    "streams",
    "compiling",
    "estimators",
    "bridge",
    "reference",
)


def chosen(name: str) -> list[tuple[str, str]]:
    """Topic and benchmark of a name, `topic` or `topic.benchmark`."""
    topic, _, benchmark = name.partition(".")
    if topic in TOPICS:
        every = importlib.import_module(f"benchmarks.{topic}").BENCHMARKS
        if not benchmark or benchmark in every:
            return [(topic, one) for one in every if benchmark in ("", one)]
    choices = ", ".join(TOPICS)
    raise argparse.ArgumentTypeError(f"{name!r} is none of {choices}, nor in them")


def run(selected: list[tuple[str, str]], size: str, file: Path | None) -> report.Saved:
    """Runs benchmarks and saves what is known after each record."""
    saved = {"size": size, "environment": _records.environment(), "records": []}
    for topic, name in selected:
        begin, before = time.perf_counter(), sum(os.times()[:4])
        run_one = importlib.import_module(f"benchmarks.{topic}").BENCHMARKS[name]
        for record in run_one(size):
            saved["records"].append({"benchmark": f"{topic}.{name}"} | record)
            saved["environment"]["load_after"] = os.getloadavg()[0]
            if file:
                file.write_text(json.dumps(saved, indent=1, allow_nan=False))
        took, work = time.perf_counter() - begin, sum(os.times()[:4]) - before
        text = f"{topic}.{name}: {took:.0f} s, {work:.0f} s of processors"
        print(text, file=sys.stderr, flush=True)
    return saved


def main() -> None:
    match sys.argv[1:]:
        case ["in-child", name, *args]:
            module, _, function = name.partition(":")
            print(json.dumps(getattr(importlib.import_module(module), function)(*args)))
            return
        case ["report", *rest]:
            parser = argparse.ArgumentParser("python -m benchmarks report")
            parser.add_argument("file", type=Path)
            parser.add_argument("--picture", type=Path, help="draws the estimators")
            args = parser.parse_args(rest)
            saved = json.loads(args.file.read_text())
            print(report.render(saved))
            if args.picture:
                from benchmarks.picture import draw

                draw(args.picture, saved["records"])
            return
    parser = argparse.ArgumentParser(
        "python -m benchmarks",
        description=benchmarks.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", type=chosen, metavar="topic[.benchmark]")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--small", action="store_true", help="tiny: does it run?")
    size.add_argument("--full", action="store_true", help="all of torch's 4001 steps")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    # Compiling is measured: nothing of it may come from a run before.
    jax.config.update("jax_enable_compilation_cache", False)
    named = args.names or map(chosen, TOPICS)
    selected = [one for every in named for one in every]
    size = "small" if args.small else "full" if args.full else "medium"
    print(report.render(run(selected, size, args.json)))


if __name__ == "__main__":
    main()
