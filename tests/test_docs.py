"""README and docs/: examples run, the reference is complete, links lead somewhere."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from _printed import assert_says_the_same

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "guides").glob("*.md")),
    *sorted((ROOT / "docs" / "how").glob("*.md")),
]
SPACES = [
    "diffkm_jax",
    "diffkm_jax.estimators",
    "diffkm_jax.plotting",
    "diffkm_jax.cluster",
    "diffkm_torch",
    "diffkm_torch.estimators",
    "diffkm_torch.agreement",
    "diffkm_torch.bridge",
]


def name_of(page):
    return str(page.relative_to(ROOT))


def examples(page):
    """The program that the examples of a page are together."""
    return "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))


def prose(page):
    """A page without its programs."""
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)


def links(page):
    """What a page links to in the repository."""
    targets = re.findall(r"\]\(([^)\s]+)", prose(page))
    return [target for target in targets if not target.startswith("http")]


def anchors(page):
    """Those of its headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", heading).lower() for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


def reference():
    """Names that have a page of their own in the reference, with their module."""
    found = []
    for page in (ROOT / "docs" / "api").glob("*.rst"):
        _, *parts = page.read_text().split(".. currentmodule:: ")
        for part in parts:
            module = part.split(maxsplit=1)[0]
            names = re.findall(r"^   (\w+)$", part, re.MULTILINE)
            found += [f"{module}.{name}" for name in names]
    return sorted(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if examples(page)], ids=name_of
)
def test_the_examples_run_and_print_what_they_say(page, tmp_path):
    program = examples(page)
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        # As it runs for a reader.
        env=os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    said = "\n".join(re.findall(r"^# (.*)$", program, re.MULTILINE))
    # Sampled or summed in another order on another machine: to a few percent.
    assert_says_the_same(run.stdout, said, tolerance=0.05)


def test_every_public_name_is_in_the_reference_once():
    public = [
        f"{space}.{name}"
        for space in SPACES
        for name in importlib.import_module(space).__all__
        if name != "estimators"
    ]
    assert reference() == sorted(public)


def test_every_link_to_a_test_names_one():
    found = [
        (page.parent / path, name)
        for page in PAGES
        for path, name in re.findall(
            r'\]\(([\w/.]*tests/[\w/]+\.py) "(\w+)"\)', page.read_text()
        )
    ]
    assert len(found) >= 18
    for path, name in found:
        assert f"\ndef {name}(" in path.read_text(), (path, name)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_file_a_heading_or_a_name(page):
    known = set(reference())
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target) | known, link


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
