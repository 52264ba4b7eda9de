"""The command line of the campaign: the whole, parts, or a sample of it."""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from tests._compiling import FLAGS

os.environ.setdefault("XLA_FLAGS", FLAGS)
os.environ.setdefault("OMP_NUM_THREADS", "1")

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_enable_x64", True)

from tests.campaign import PARTS  # noqa: E402
from tests.campaign._cells import Cell, print_table, run, sampled, write_json  # noqa: E402


def chosen(cells: Iterator[Cell], words: list[str]) -> Iterator[Cell]:
    """The cells whose kind and label have all the words."""
    for cell in cells:
        if all(word in f"{cell.kind}: {cell.label}" for word in words):
            yield cell


def main() -> int:
    """Runs, prints the table, and returns 1 if a cell fails."""
    parser = argparse.ArgumentParser("python -m tests.campaign", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--sample", action="store_true", help="a fixed small part")
    text = "cells whose 'kind: label' has this; may be repeated, to have all"
    parser.add_argument("--only", action="append", default=[], help=text)
    text = "honest pairs of agreement (%(default)s)"
    parser.add_argument("--pairs", type=int, default=1000, help=text)
    parser.add_argument("--json", type=Path, help="write every outcome to this file")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    warnings.simplefilter("ignore")
    outcomes, begin = [], time.perf_counter()
    for part in options.parts or PARTS:
        module, *one_in = PARTS[part]
        given = {"pairs": options.pairs} if part == "agreement" else {}
        cells = import_module(f"tests.campaign.{module}").cells(**given)
        if options.sample:
            cells = sampled(cells, *one_in)
        for outcome in run(chosen(cells, options.only)):
            outcomes.append(outcome)
            if outcome.outcome == "failing":
                print(f"{outcome.kind}: {outcome.label}: {outcome.message[:200]}",
                      file=sys.stderr, flush=True)  # fmt: skip
    if options.json:
        write_json(outcomes, options.json)
    print_table(outcomes)
    print(f"\n{time.perf_counter() - begin:.0f} s")
    return int(any(o.outcome == "failing" for o in outcomes) or not outcomes)


if __name__ == "__main__":
    sys.exit(main())
