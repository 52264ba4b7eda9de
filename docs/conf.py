"""The documentation: `sphinx-build -c docs . site`, from the root of the repository.

The source folder is the root, so that pages, notebooks and README link to each other
by the paths that a reader of the repository follows.
"""

import re
import shutil
from pathlib import Path

import diffkm_jax

HERE = Path(__file__).parent

project = "diffkm"
author = "The diffkm developers"
version = release = diffkm_jax.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
root_doc = "README"
include_patterns = ["README.md", "docs/**", "notebooks/**"]
exclude_patterns = [".*", "docs/contents.md", "docs/_templates", "build", "dist"]
# The class is also found where it is defined.
suppress_warnings = ["ref.python"]

# Notebooks hold their outputs; the tests run them.
nb_execution_mode = "off"
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]

autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "fully-qualified"

default_role = "code"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_attr_annotations = False

html_theme = "furo"
html_title = f"diffkm {release}"
html_copy_source = False
templates_path = [str(HERE / "_templates")]


def add_contents(app, docname, source):
    """The README is the first page, and here has what a page of a repository lacks."""
    if docname == root_doc:
        source[0] += "\n" + (HERE / "contents.md").read_text()


def copy_first_page(app, error):
    """A server shows index.html."""
    if error is None and app.builder.name == "html":
        shutil.copy(Path(app.outdir) / "README.html", Path(app.outdir) / "index.html")


def as_restructured_text(app, what, name, obj, options, lines):
    """Docstrings have code in backticks, behind >>> and indented, and no more marks."""
    blocks = re.split(r"(\n\n(?=\s*\S))", "\n".join(lines))
    for i in range(0, len(blocks), 2):
        is_code = i and blocks[i - 2].rstrip().endswith("::")
        if is_code or blocks[i].lstrip().startswith(">>>"):
            continue
        blocks[i] = escaped(blocks[i])
        if blocks[i].startswith("Source:"):
            blocks[i] = " ".join(blocks[i].split())
        if i + 2 < len(blocks) and blocks[i].endswith(":"):
            deeper = indent(blocks[i + 2]) > indent(blocks[i].splitlines()[-1])
            blocks[i] += ":" * deeper
    lines[:] = "".join(blocks).split("\n")


def indent(text):
    """How far a block is indented."""
    return len(text) - len(text.lstrip())


def escaped(text):
    """What is no code in backticks, without marks, and apart from it."""
    parts = re.split(r"(`[^`]*`)", text)
    for i in range(0, len(parts), 2):
        part = re.sub(r"([*|])", r"\\\1", parts[i])
        if i:
            part = re.sub(r"^(?=[^\s'\")\]}>/:.,;!?-])", r"\\ ", part)
        if i + 1 < len(parts):
            part = re.sub(r"(?<=[^\s'\"(\[{<\-/:])$", r"\\ ", part)
        parts[i] = part
    return "".join(parts)


def skip_fields(app, what, name, obj, skip, options):
    """The fields of a named tuple are in its docstring."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def setup(app):
    """Called by Sphinx."""
    # Before napoleon, whose own marks must stay.
    app.connect("autodoc-process-docstring", as_restructured_text, priority=400)
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("source-read", add_contents)
    app.connect("build-finished", copy_first_page)
