"""The README: its Python runs, its lists are complete, what it links to is there."""

import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from _printed import assert_says_the_same

import diffkm_jax
import diffkm_torch

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text()
SPACES = "diffkm_torch.agreement", "diffkm_torch.bridge"


def listed():
    """The names under each heading of a module, with what is said of them."""
    found = {}
    section = TEXT.split("\n## All names\n")[1].split("\n## ")[0]
    for part in section.split("\n### ")[1:]:
        module, _, lines = part.partition("\n")
        found[module] = dict(re.findall(r"^- `(\w+)`: (.+)$", lines, re.MULTILINE))
    return found


def public():
    """All public names: (module, name)."""
    found = []
    twins = set(diffkm_jax.__all__)
    for package, known in ((diffkm_jax, set()), (diffkm_torch, twins)):
        for name in set(package.__all__) - known - {"estimators"}:
            found.append((package.__name__, name))
    for name in diffkm_jax.estimators.__all__:
        found.append(("diffkm_jax.estimators", name))
    for space in SPACES:
        for name in importlib.import_module(space).__all__:
            found.append((space, name))
    return sorted(found)


@pytest.mark.slow
def test_the_examples_run_and_print_what_they_say():
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    program = "\n".join(blocks)
    said = re.findall(r"^# (.*)$", program, re.MULTILINE)
    run = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"XLA_FLAGS": ""},  # As it runs for a reader.
        cwd=README.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert len(said) >= 4
    # Sampled or summed in another order on another machine: to a few percent.
    assert_says_the_same(run.stdout, "\n".join(said), tolerance=0.05)


def test_every_public_name_is_listed_once_where_it_is():
    found = []
    for module, lines in listed().items():
        space = module in (*SPACES, "diffkm_jax.estimators")
        found += [(module if space else module.split(".")[0], name) for name in lines]
        assert set(lines) <= set(importlib.import_module(module).__all__)
    assert sorted(found) == public()


@pytest.mark.parametrize("module", listed())
def test_what_is_said_of_a_name_is_the_first_line_of_its_help(module):
    inside = importlib.import_module(module)
    first = {n: inspect.getdoc(getattr(inside, n)) or "" for n in listed()[module]}
    assert listed()[module] == {n: text.splitlines()[0] for n, text in first.items()}


def test_every_link_to_a_test_names_one():
    links = re.findall(r'\]\((tests/[\w/]+\.py) "(\w+)"\)', TEXT)
    assert len(links) >= 18
    for path, name in links:
        assert f"\ndef {name}(" in (README.parent / path).read_text(), (path, name)


def test_every_file_that_is_linked_is_there():
    targets = re.findall(r"\]\(([^)\s]+)", TEXT)
    files = [t for t in targets if not t.startswith(("http", "#"))]
    assert len(files) >= 8
    assert [name for name in files if not (README.parent / name).is_file()] == []
    headings = re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)
    anchors = {"#" + h.lower().replace(" ", "-") for h in headings}
    assert {t for t in targets if t.startswith("#")} <= anchors
