"""Arguments of the command line: how they are checked, and how an error reads."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """A parser whose errors begin as all others of this command line."""

    def error(self, message: str) -> NoReturn:
        """Prints the usage and the error, and exits with status 2."""
        self.print_usage(sys.stderr)
        self.exit(2, f"diffkm: error: {message}\n")


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
