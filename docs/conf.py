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
autodoc_typehints_format = "short"
default_role = "code"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
napoleon_custom_sections = [("Source", "notes_style")]

html_theme = "furo"
html_title = f"diffkm {release}"
html_copy_source = False
templates_path = ["_templates"]


def add_contents(app, docname, source):
    """The README is the first page, and here has what a page of a repository lacks."""
    if docname == root_doc:
        source[0] += "\n" + (HERE / "contents.md").read_text()


def copy_first_page(app, error):
    """A server shows index.html."""
    if error is None and app.builder.name == "html":
        shutil.copy(Path(app.outdir) / "README.html", Path(app.outdir) / "index.html")


def as_restructured_text(app, what, name, obj, options, lines):
    """Docstrings have code in single backticks, and no other markup."""
    in_example = False
    for i, line in enumerate(lines):
        in_example = bool(line.strip()) and (in_example or line.lstrip()[:3] == ">>>")
        if in_example:
            continue
        parts = re.split(r"(`[^`]*`)", line)
        parts[::2] = [re.sub(r"([*|])", r"\\\1", text) for text in parts[::2]]
        lines[i] = "".join(parts)


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
