"""The command line of the benchmarks: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax

import benchmarks
from benchmarks import _records, report

TOPICS = (
    "losses",
    "passes",
    "distances",
    "fits",
    "cluster",
    "quality",
    "streams",
    "compiling",
    "estimators",
    "training",
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


def known(file: Path, size: str) -> list[_records.Record]:
    """The records that a run of this size, on this machine, has left in a file.

    No records if there is no file.

    Raises:
        ValueError: The file is of another size or machine, or of no run.
    """
    if not file.exists():
        return []
    before, now = json.loads(file.read_text()), _records.environment()
    fields = {"size", "environment", "records"}
    if not isinstance(before, dict) or not fields <= set(before):
        raise ValueError(f"{file} must be what --json has written")
    if before["size"] != size:
        raise ValueError(f"{file} is of the size {before['size']}, not {size}")
    for what in ("processor", "cores", "versions"):
        if before["environment"][what] != now[what]:
            raise ValueError(f"{file} is of another machine: its {what} differ")
    return before["records"]


def run(
    selected: list[tuple[str, str]],
    size: str,
    file: Path | None,
    before: Sequence[_records.Record] = (),
) -> report.Saved:
    """Runs benchmarks and saves what is known after each record.

    Records from before are kept, and no part that is among them is taken again.
    """
    saved = {"size": size, "environment": _records.environment()}
    done = {json.dumps([one["benchmark"], one["parameters"]]): one for one in before}
    for topic, name in selected:
        begin, begun = time.perf_counter(), sum(os.times()[:4])
        run_one = importlib.import_module(f"benchmarks.{topic}").BENCHMARKS[name]
        for found in run_one(size):
            if isinstance(found, _records.Part):
                if json.dumps([f"{topic}.{name}", found.parameters]) in done:
                    continue
                found = found.take() | {"parameters": found.parameters}
            record = {"benchmark": f"{topic}.{name}"} | found
            done[json.dumps([record["benchmark"], record["parameters"]])] = record
            saved["environment"]["load_after"] = os.getloadavg()[0]
            if file:
                save(file, saved | {"records": list(done.values())})
        took, work = time.perf_counter() - begin, sum(os.times()[:4]) - begun
        text = f"{topic}.{name}: {took:.0f} s, {work:.0f} s of processors"
        print(text, file=sys.stderr, flush=True)
    return saved | {"records": list(done.values())}


def save(file: Path, saved: report.Saved) -> None:
    """Writes the file whole or not at all."""
    unfinished = file.with_name(f"{file.name}.part")
    unfinished.write_text(json.dumps(saved, indent=1, allow_nan=False))
    unfinished.replace(file)


def main() -> None:
    match sys.argv[1:]:
        case ["in-child", name, *args]:
            module, _, function = name.partition(":")
            print(json.dumps(getattr(importlib.import_module(module), function)(*args)))
            return
        case ["report", *rest]:
            parser = argparse.ArgumentParser("python -m benchmarks report")
            parser.add_argument("file", type=Path)
            parser.add_argument("--picture", type=Path, metavar="PNG")
            parser.add_argument(
                "--of", choices=("estimators", "training"), default="estimators"
            )
            args = parser.parse_args(rest)
            saved = json.loads(args.file.read_text())
            print(report.render(saved))
            if args.picture:
                name = {"estimators": "picture", "training": "training_picture"}
                module = importlib.import_module(f"benchmarks.{name[args.of]}")
                module.draw(args.picture, saved["records"])
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
    parser.add_argument("--resume", action="store_true", help="keeps what FILE holds")
    args = parser.parse_args()
    # Compiling is measured: nothing of it may come from a run before.
    jax.config.update("jax_enable_compilation_cache", False)
    named = args.names or map(chosen, TOPICS)
    selected = [one for every in named for one in every]
    size = "small" if args.small else "full" if args.full else "medium"
    if args.resume and not args.json:
        parser.error("--resume needs --json FILE")
    try:
        before = known(args.json, size) if args.resume else ()
    except ValueError as error:
        parser.error(f"--resume: {error}")
    print(report.render(run(selected, size, args.json, before)))


if __name__ == "__main__":
    main()
