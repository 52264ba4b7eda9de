"""The command line, as `diffkm` and as `python -m diffkm_jax`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from diffkm_jax._command_line.output import CommandError, say, with_output
from diffkm_jax._command_line.parser import parse


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
        return 130
    except BrokenPipeError:
        raise
    except (CommandError, OSError) as error:
        say(f"error: {error}")
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        say(f"error: not enough memory: {error}")
    return 2


if __name__ == "__main__":
    sys.exit(main())
