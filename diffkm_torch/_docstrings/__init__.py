"""Whole docstrings for what mirrors a name of `diffkm_jax`, read from one file.

A docstring stands once, in `diffkm_jax`; here a function says what it mirrors, and what
is otherwise here. `python -m diffkm_torch._docstrings` writes of both `whole.txt`.
"""

from __future__ import annotations

import re
from functools import reduce
from pathlib import Path
from types import ModuleType

FILE = Path(__file__).with_name("whole.txt")
HEAD = re.compile(r"^## (\S+)\n", flags=re.MULTILINE)


def read() -> dict[str, str]:
    """The docstrings of the file by the name in the package."""
    parts = HEAD.split(FILE.read_text(encoding="utf-8"))
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    return {name: text.strip("\n") for name, text in pairs}


def attach(package: ModuleType) -> None:
    """Gives the functions and classes of the package their whole docstrings."""
    for name, text in read().items():
        # A name may have gone since the file was written: a test finds that.
        found = reduce(lambda o, part: getattr(o, part, None), name.split("."), package)
        if found is not None:
            found.__doc__ = text
