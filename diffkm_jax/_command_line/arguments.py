"""Arguments of the command line: how they are checked, and how an error reads."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """A parser whose errors begin as all others of this command line."""

    def error(self, message: str) -> NoReturn:
        """Prints the error in one line, and exits with status 2."""
        self.exit(2, f"diffkm: error: {' '.join(message.split())} ({self.prog} -h)\n")


def checked(kind: type, accepts: Callable[[Any], bool], what: str) -> Callable:
    """A type for argparse: what `accepts` accepts."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not accepts(value):
            raise argparse.ArgumentTypeError(f"must be {what}, got {text!r}")
        return value

    return parse


def integer(low: int, high: int) -> Callable:
    """A type for argparse: an integer from `low` to `high`."""
    what = f"an integer from {low} to {high}"
    return checked(int, lambda v: low <= v <= high, what)


def positive(why: str = "") -> Callable:
    """A type for argparse: a positive number that no processor takes for 0."""
    least = sys.float_info.min
    return checked(float, lambda v: least <= v < math.inf, f"positive, and finite{why}")


def path(*suffixes: str) -> Callable:
    """A type for argparse: a path that ends in one of these."""
    what = f"a path that ends in {' or '.join(suffixes)}"
    return checked(Path, lambda p: p.suffix.lower() in suffixes, what)
