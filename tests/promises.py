"""The table of promises in the documentation: which derivatives each function has."""

import re
from collections.abc import Iterator
from pathlib import Path

PAGE = (Path(__file__).parents[1] / "docs" / "promises.md").read_text()


def promises() -> Iterator[tuple[str, list[str]]]:
    """(function, [meaning, grad, jvp, second order, vmap]) of every row."""
    section = PAGE.split("\n## ")[0]
    for row in re.findall(r"^\| (`.+) \|$", section, re.MULTILINE):
        names, *cells = row.split(" | ")
        for name in re.findall(r"`([^`]+)`", names):
            yield name, cells
