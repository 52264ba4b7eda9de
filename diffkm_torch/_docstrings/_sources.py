"""Docstrings as they stand in the sources: of what is not imported, so without JAX."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TypeAlias

Definition: TypeAlias = ast.FunctionDef | ast.ClassDef | ast.Module

ROOT = Path(__file__).parents[2]
MIRRORED = re.compile(r"Mirrors `diffkm_jax\.([\w.]+)`")


def mirrors() -> Iterator[tuple[str, Definition]]:
    """Functions, classes and modules that mirror something public, by its name."""
    for path in sorted((ROOT / "diffkm_torch").rglob("*.py")):
        for node in ast.walk(_parsed(path)):
            if isinstance(node, Definition):
                match = MIRRORED.match(ast.get_docstring(node) or "")
                if match and "._" not in match[1]:
                    yield match[1], node


def names(node: Definition) -> list[str]:
    """The parameters of a function, or the fields of a class."""
    if isinstance(node, ast.FunctionDef):
        a = node.args
        return [x.arg for x in [*a.posonlyargs, *a.args, *a.kwonlyargs]]
    found = []
    for part in node.body:
        if isinstance(part, ast.AnnAssign):
            found += [ast.unparse(part.target)]
        elif isinstance(part, ast.Assign):
            found += [ast.unparse(target) for target in part.targets]
    return found


def original(name: str) -> Definition:
    """The definition, or the module, that `diffkm_jax` has under a name."""
    return _find(ROOT / "diffkm_jax", name.split("."))


def _find(module: Path, parts: list[str]) -> Definition:
    """What a module, a folder or a file, defines or imports under a name."""
    file = module
    if module.is_dir():
        # A package that loads its names when asked has them in a file of their own.
        lazy = module / "_names.py"
        file = lazy if parts and lazy.exists() else module / "__init__.py"
    tree = _parsed(file)
    if not parts:
        return tree
    first, *rest = parts
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == first:
            return _inside(node, rest)
        if not isinstance(node, ast.ImportFrom) or node.module == "diffkm_jax":
            continue
        if first in [alias.name for alias in node.names]:
            return _find(_path(ROOT.joinpath(*str(node.module).split("."))), parts)
    return _find(_path(module / first), rest)


def _inside(node: Definition, parts: list[str]) -> Definition:
    for part in parts:
        [node] = [
            x for x in node.body if isinstance(x, ast.FunctionDef) and x.name == part
        ]
    return node


def _path(module: Path) -> Path:
    return module if module.is_dir() else module.with_suffix(".py")


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))
