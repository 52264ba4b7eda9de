"""The shape of the project: levels, names, the mirror, imports."""

import ast
import inspect
import statistics
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import diffkm_jax
import diffkm_torch

ROOT = Path(diffkm_jax.__file__).parent
LEVELS = [
    ["_dtypes", "_hints", "_leaves", "_mesh", "_numerics", "_printed", "_public"],
    ["_tangents", "_writing"],
    ["_docstrings"],
    ["_problem"],
    ["_checks", "_blocks", "_products", "_units", "agreement", "bridge"],
    ["_sharding"],
    ["_geometry"],
    ["distances", "assignments"],
    ["_expansion"],
    ["_distance_pass", "_given", "_domain"],
    ["_soft_pass"],
    ["_pass"],
    ["statistics", "_statistics"],
    ["losses", "initializers", "optimizers", "quantizers", "estimators"],
    ["fitting", "diagnostics"],
    ["modules", "sharding", "streaming"],
    ["storage"],
    ["_names"],
    ["__init__"],
    ["_by_name"],
    ["cluster"],
    ["_callers", "_example_arrays"],
    ["_calls"],
    ["_parity", "_checkpoints"],
    ["plotting"],
    ["_command_line"],
    ["__main__"],
]
# Of the mirror, sharding and random draws are left out.
ONLY_JAX = {
    "Certificate",
    "Report",
    "certificate",
    "evaluate",
    "fit_minibatch",
    "fit_restarts",
    "fit_sharded",
    "fit_specs",
    "fit_stream",
    "StreamResult",
    "is_discrete",
    "tune",
    "kmeans_parallel",
    "load",
    "save",
    "kmeans_plus_plus",
    "random_points",
}
ONLY_TORCH = {"KMeansLoss", "VectorQuantizer", "sgd"}


def functions(module):
    """The public functions of a module, by name."""
    found = {name: getattr(module, name) for name in module.__all__}
    return {n: f for n, f in found.items() if inspect.isfunction(inspect.unwrap(f))}


# Maps and estimators may have the same name.
ESTIMATORS = functions(diffkm_jax.estimators)
FUNCTIONS = functions(diffkm_jax)
MIRRORED = [
    *((diffkm_jax, diffkm_torch, name) for name in FUNCTIONS if name not in ONLY_JAX),
    *((diffkm_jax.estimators, diffkm_torch.estimators, name) for name in ESTIMATORS),
]


def modules(package):
    return sorted(Path(package.__file__).parent.rglob("*.py"))


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module


def part(module):
    """The top part of a module inside its package: `assignments`, `statistics`."""
    names = module.split(".")
    return names[1] if len(names) > 1 else "__init__"


@pytest.mark.parametrize("package", [diffkm_jax, diffkm_torch])
def test_imports_point_down_the_levels(package):
    level = {name: i for i, names in enumerate(LEVELS) for name in names}
    root = Path(package.__file__).parent
    for path in modules(package):
        own = path.relative_to(root).with_suffix("").parts[0]
        for module in imported(path):
            if module.split(".")[0] == package.__name__ and part(module) != own:
                assert level[part(module)] < level[own], f"{path.name}: {module}"


def test_jax_never_imports_torch_and_two_places_scikit_learn():
    places = set()
    for path in modules(diffkm_jax):
        for module in imported(path):
            assert module.split(".")[0] not in ("torch", "diffkm_torch")
            if module.split(".")[0] in ("sklearn", "scipy"):
                places.add(path.relative_to(ROOT).with_suffix("").parts[0])
    assert places == {"_command_line", "cluster"}


def test_only_pictures_import_matplotlib():
    for package in (diffkm_jax, diffkm_torch):
        for path in modules(package):
            found = {module.split(".")[0] for module in imported(path)}
            assert "matplotlib" not in found or path.parent.name == "plotting"


def test_importing_starts_no_backend_and_changes_no_configuration():
    program = (
        "import jax; before = dict(jax.config.values); import diffkm_jax;"
        "assert dict(jax.config.values) == before;"
        "from jax._src import xla_bridge;"
        "assert not xla_bridge.backends_are_initialized();"
        "import sys; assert not {'torch', 'sklearn', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT.parent)


def test_jax_is_imported_when_a_public_name_is_first_asked_for():
    program = (
        "import sys, diffkm_jax;"
        "assert not {'jax', 'numpy', 'optax'} & set(sys.modules);"
        "from diffkm_jax import _statistics;"
        "assert diffkm_jax.statistics is _statistics.statistics;"
        "assert 'fit' in dir(diffkm_jax); from diffkm_jax import *; fit; estimators;"
        "assert not hasattr(diffkm_jax, 'no') and not hasattr(diffkm_jax, '_no')"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT.parent)


def test_no_module_has_the_name_of_a_public_function():
    modules = {path.stem for path in ROOT.iterdir()}
    assert modules & set(diffkm_jax.__all__) == {"estimators"}  # Which is the module.


@pytest.mark.parametrize("package", [diffkm_jax, diffkm_torch])
def test_the_public_names_are_those_imported(package):
    path = Path(package.__file__)
    lazy = path.with_name("_names.py")
    tree = ast.parse((lazy if lazy.exists() else path).read_text())
    names = [
        alias.asname or alias.name
        for node in tree.body
        for alias in getattr(node, "names", [])
        if alias.asname
        or (
            isinstance(node, ast.ImportFrom)
            and str(node.module).startswith(package.__name__)
        )
    ]
    assert sorted(names) == sorted(package.__all__)


def test_every_mirrored_name_is_in_both_packages():
    assert set(diffkm_jax.__all__) - ONLY_JAX == set(diffkm_torch.__all__) - ONLY_TORCH


def test_the_estimators_are_mirrored():
    assert diffkm_jax.estimators.__all__ == diffkm_torch.estimators.__all__


@pytest.mark.parametrize(("ours", "theirs", "name"), MIRRORED)
def test_the_mirror_has_the_same_arguments_in_the_same_order(ours, theirs, name):
    def arguments(module):
        parameters = inspect.signature(getattr(module, name)).parameters.values()
        return [
            (p.name, p.kind, getattr(p.default, "__name__", p.default))
            for p in parameters
            if p.name != "axis_name"
        ]

    assert arguments(ours) == arguments(theirs)


TUPLES = ["Statistics", "State", "FitResult"]
TUPLES += ["LookupFreeQuantized", "Quantized", "ScalarQuantized"]


@pytest.mark.parametrize("name", TUPLES)
def test_the_mirror_has_the_same_fields(name):
    ours, theirs = getattr(diffkm_jax, name), getattr(diffkm_torch, name)
    assert ours._fields == theirs._fields


def test_the_flags_are_the_same():
    ours, theirs = diffkm_jax.Status, diffkm_torch.Status
    assert {f.name: f.value for f in ours} == {f.name: f.value for f in theirs}


def test_the_record_has_the_same_fields():
    ours, theirs = diffkm_jax.estimators.Estimator, diffkm_torch.estimators.Estimator
    assert [f.name for f in fields(ours)] == [f.name for f in fields(theirs)]
    for method in ("draw", "expect"):
        assert len(inspect.signature(getattr(ours, method)).parameters) == len(
            inspect.signature(getattr(theirs, method)).parameters
        )


@pytest.mark.parametrize("package", [diffkm_jax, diffkm_torch])
def test_files_stay_short(package):
    lines = {p.name: len(p.read_text().splitlines()) for p in modules(package)}
    assert {name: n for name, n in lines.items() if n > 300} == {}
    assert statistics.median(lines.values()) < 200


def test_both_packages_are_typed():
    for package in (diffkm_jax, diffkm_torch):
        assert (Path(package.__file__).parent / "py.typed").exists()
