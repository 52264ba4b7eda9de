"""The command line, as `diffkm` and as `python -m diffkm_jax`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from diffkm_jax._command_line.output import CommandError, say, with_output
from diffkm_jax._command_line.parser import parse

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status, as in its help."""
    return with_output(lambda: run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """The exit status of a command; a file that cannot be used is one line."""
    try:
        options = parse(argv)
        # Not before: help is there at once.
        import jax

        command = import_module(f"diffkm_jax._command_line.{options.command}")
        with jax.enable_x64(True):
            return command.run(options)
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except OSError as error:
        where = "" if error.filename else "cannot write to stdout: "
        say(f"error: {where}{error}")
    except CommandError as error:
        say(f"error: {error}")
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        say(f"error: not enough memory: {error}")
    return 2


def command() -> NoReturn:
    """Runs a command as a process of its own."""
    status = main()
    if status == INTERRUPTED:
        # Not by Python's own end, which threads of XLA that still work may not survive.
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    command()
