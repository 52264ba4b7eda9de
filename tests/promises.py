"""The README's table of promises: which derivatives each function has."""

import re
from collections.abc import Iterator
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def promises() -> Iterator[tuple[str, list[str]]]:
    """(function, [meaning, grad, jvp, second order, vmap]) of every row."""
    section = README.split("\n## What is promised\n")[1].split("\n## ")[0]
    for row in re.findall(r"^\| (`.+) \|$", section, re.MULTILINE):
        names, *cells = row.split(" | ")
        for name in re.findall(r"`([^`]+)`", names):
            yield name, cells
