"""The notebooks run from a clean kernel, and print what they are committed with."""

import re
import sys
from pathlib import Path

import nbformat
import pytest
from _printed import assert_says_the_same
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# What is imported, as it is installed.
INSTALLED = {
    "diffkm_jax": "..",
    "diffkm_torch": "..",
    "equinox": "equinox",
    "matplotlib": "matplotlib",
    "sklearn": "scikit-learn",
    "torch": "torch",
}


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cell):
    return "".join(o.text for o in cell.outputs if o.output_type == "stream")


def num_pictures(cell):
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)


def imports():
    """Each notebook with each package that its first cell imports."""
    for path in NOTEBOOKS:
        source = code_cells(read(path))[0].source
        for package in INSTALLED:
            if re.search(rf"^ +(import|from) {package}\b", source, re.MULTILINE):
                yield pytest.param(path, package, id=f"{path.stem[:2]}-{package}")


def test_there_are_six():
    assert [path.stem[:2] for path in NOTEBOOKS] == [f"0{i}" for i in range(1, 7)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem[:2])
def test_they_are_committed_as_a_clean_kernel_left_them(path):
    cells = code_cells(read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert [o for o in outputs if o.get("name") == "stderr"] == []
    assert [o for o in outputs if o.output_type == "error"] == []
    assert sum(map(num_pictures, cells)) >= 4
    text = "".join(map(printed, cells))
    assert len(text.splitlines()) >= 10
    assert "site-packages" not in text
    assert str(FOLDER.parent) not in text
    assert path.stat().st_size < 1e6


@pytest.mark.parametrize(("path", "package"), list(imports()))
def test_without_a_package_the_first_cell_says_what_to_install(
    path, package, monkeypatch
):
    inside = [name for name in sys.modules if name.startswith(f"{package}.")]
    for name in (package, *inside):
        monkeypatch.setitem(sys.modules, name, None)
    installed = re.escape(INSTALLED[package])
    message = rf"^{package}\b.* is missing\. .*%pip install .*{installed}"
    with pytest.raises(ImportError, match=message):
        exec(code_cells(read(path))[0].source, {})


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem[:2])
def test_they_run_and_print_what_they_say(path, tmp_path, monkeypatch):
    # As they run for a reader, with pictures in the page.
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.delenv("MPLBACKEND")
    committed, notebook = read(path), read(path)
    client = NotebookClient(
        notebook,
        timeout=600,
        coalesce_streams=True,
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    for said, cell in zip(code_cells(committed), code_cells(notebook), strict=True):
        assert_says_the_same(printed(cell), printed(said), tolerance=0.1)
        assert num_pictures(cell) == num_pictures(said)
