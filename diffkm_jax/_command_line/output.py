"""What the command line writes: files, each whole or not at all, and its last word."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from diffkm_jax._writing import write_whole


class CommandError(Exception):
    """What is wrong with a file or an option, in one line; the exit status is 2."""


def say(message: str) -> None:
    """Prints one line to stderr: an error, a warning, or how far a fit is."""
    with suppress(OSError):  # Nobody can be told that nobody can be told.
        if sys.stderr is not None:
            print(f"diffkm: {' '.join(message.split())}", file=sys.stderr)


def check_out(out: Path | None, *inputs: Path) -> None:
    """Raises unless the output, if any, can be written, and is no input."""
    if out is None:
        return
    if out.is_dir():
        raise CommandError(f"{out} is a directory")
    if out.exists() and not out.is_file():
        raise CommandError(f"{out} is not a regular file")
    for file in inputs:
        if out.exists() and file.exists() and out.samefile(file):
            raise CommandError(f"{out} is the input too")
    if not out.absolute().parent.exists():
        raise CommandError(f"{out}: there is no folder {out.parent}")
    try:
        with tempfile.TemporaryFile(dir=out.resolve().parent):
            pass
    except (OSError, RuntimeError) as error:  # RuntimeError: links that go in a circle.
        raise CommandError(f"{out}: cannot write to its folder: {error}") from error


def write(out: Path, into: Callable[[Any], None]) -> None:
    """Writes a file by a function of the open file, or says why not."""
    try:
        write_whole(out, into)
    except OSError as error:
        # Of a full disk NumPy says how much it wrote.
        full = "" if error.errno else "is the disk full? "
        raise CommandError(f"{out}: cannot be written: {full}{error}") from error


def with_output(run: Callable[[], int]) -> int:
    """The exit status of a command whose output is out; 141 if its reader has gone."""
    try:
        try:
            return run()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError as error:
        with suppress(OSError, AttributeError):
            # Or Python would try it again at its end.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())  # type: ignore[union-attr]
        if isinstance(error, BrokenPipeError):
            return 141  # As of a process that SIGPIPE ended.
        say(f"error: cannot write to stdout: {error}")
        return 2
