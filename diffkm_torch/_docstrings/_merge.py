"""A whole docstring: of what is mirrored, in the words of torch, and of the mirror."""

from __future__ import annotations

import ast
import inspect
import re
from textwrap import fill

from diffkm_torch._docstrings._sources import Definition, mirrors, names, original
from diffkm_torch._docstrings._words import in_torch

# By section its entries: a name, or none, and the text, of an example as it stands.
Sections = dict[str, list[tuple[str, str]]]

ORDER = ("", "Args", "Attributes", "Returns", "Raises", "Example", "Source")
ENTRIES = ("Args", "Attributes", "Raises")
HEAD = re.compile(rf"^({'|'.join(filter(None, ORDER))}):", flags=re.MULTILINE)
ENTRY = re.compile(r"^ {4}(\w+): ", flags=re.MULTILINE)
WIDTH = 84


def whole() -> dict[str, str]:
    """The whole docstring of everything that mirrors a name, by that name."""
    found = dict(sorted(mirrors(), key=lambda pair: pair[0]))
    return {name: merged(name, node) for name, node in found.items()}


def text() -> str:
    """What the file of whole docstrings holds."""
    return "\n".join(f"## {name}\n\n{text}\n" for name, text in whole().items())


def merged(name: str, node: Definition) -> str:
    """The docstring of a mirror: own entries, and in their absence the original's."""
    own = sections(ast.get_docstring(node) or "")
    theirs = in_torch(name, sections(ast.get_docstring(original(name)) or ""))
    (_, summary), *description = theirs.pop("")
    (_, mirrored), *more = own.pop("")
    # What stands after a colon is a summary for who reads the source.
    route = re.sub(r"`: .*", "`.", mirrored)
    remarks = ("", " ".join([route, *_texts(more)]))
    result: Sections = {"": [("", summary), *description, remarks]}
    for head in ORDER[1:]:
        result[head] = own.get(head, theirs.get(head, []))
    for head in ("Args", "Attributes"):
        entries = dict(theirs.get(head, [])) | dict(own.get(head, []))
        result[head] = [(key, entries[key]) for key in names(node) if key in entries]
    return written(result)


def _texts(entries: list[tuple[str, str]]) -> list[str]:
    return [text for _, text in entries]


def sections(text: str) -> Sections:
    """The sections of a docstring by name; what comes before them is `""`."""
    parts = ["", *HEAD.split(inspect.cleandoc(text))]
    return {
        head: _entries(head, body)
        for head, body in zip(parts[::2], parts[1::2], strict=True)
    }


def _entries(head: str, body: str) -> list[tuple[str, str]]:
    if head == "Example":
        return [("", inspect.cleandoc(body))]
    if head in ENTRIES:
        parts = ENTRY.split(body)
        return list(zip(parts[1::2], map(_on_one_line, parts[2::2]), strict=True))
    return [("", _on_one_line(part)) for part in re.split(r"\n\s*\n", body.strip("\n"))]


def _on_one_line(text: str) -> str:
    return " ".join(text.split())


def written(found: Sections) -> str:
    """The docstring of some sections."""
    blocks = [_filled(text, "") for _, text in found[""]]
    for head in ORDER[1:]:
        entries = found[head]
        if head == "Source" and entries:
            blocks += [_filled(f"{head}: {' '.join(_texts(entries))}", "", "    ")]
        elif entries:
            blocks += ["\n".join([f"{head}:", *(_entry(head, *e) for e in entries)])]
    return "\n\n".join(blocks)


def _entry(head: str, name: str, text: str) -> str:
    if head == "Example":
        return "\n".join(f"    {line}".rstrip() for line in text.splitlines())
    if name:
        return _filled(f"{name}: {text}", " " * 4, " " * 8)
    return _filled(text, " " * 4)


def _filled(text: str, first: str, others: str | None = None) -> str:
    others = first if others is None else others
    return fill(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )
