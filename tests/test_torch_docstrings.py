"""The docstrings of the torch twin: whole, its own words, and examples that run."""

import inspect
import pydoc
import re
import subprocess
import sys
from functools import partial
from operator import attrgetter
from pathlib import Path

import pytest
import torch
from test_docstrings import entries, failures_of, faults, sections
from test_layout import functions

import diffkm_jax as dk
import diffkm_torch as dt
from diffkm_torch import _calls
from diffkm_torch._docstrings import FILE, _merge, _words, read

es = dt.estimators

FUNCTIONS = {
    **functions(dt),
    **{f"estimators.{name}": f for name, f in functions(es).items()},
    "KMeansLoss": dt.KMeansLoss,
    "VectorQuantizer": dt.VectorQuantizer,
}
RECORDS = {
    "FitResult": dt.FitResult,
    "LookupFreeQuantized": dt.LookupFreeQuantized,
    "Quantized": dt.Quantized,
    "ScalarQuantized": dt.ScalarQuantized,
    "State": dt.State,
    "Statistics": dt.Statistics,
    "Status": dt.Status,
    "estimators.Estimator": es.Estimator,
    "optimizers.GradientTransformation": dt.optimizers.GradientTransformation,
    "optimizers.EmaState": dt.optimizers.EmaState,
    "optimizers.MacQueenState": dt.optimizers.MacQueenState,
}
METHODS = {
    "estimators.Estimator.draw": es.Estimator.draw,
    "estimators.Estimator.expect": es.Estimator.expect,
}
MODULES = {
    name: getattr(dt, name) for name in ("assignments", "distances", "quantizers")
}
EVERYTHING = FUNCTIONS | RECORDS | METHODS | MODULES
EXAMPLES = FUNCTIONS | {"estimators.Estimator": es.Estimator}

# Words of JAX and of its company, and names that only its package has.
FOREIGN = re.compile(
    r"\b(jax|jnp|np|vmap|optax|chex|jit(ted)?|pytree|JAX|NumPy|XLA)\b|\btrac(ed|ing)\b"
    r"|\bstatic\b|shard|\bmesh\b|axis_name|\barrays?\b|\bint32\b|\bdk\.|PRNG"
    r"|\b(certificate|evaluate|tune|is_discrete|fit_\w+|kmeans_p\w+|random_points)\b"
)
# What is said of both packages, and the one of the fits that has a twin.
BOTH = r"Mirrors `diffkm_jax\.[\w.]+`|https?://\S+|`?fit_bounded`?"
# Of a name, what it says of JAX after all, and why.
ALLOWED = {
    "Status": {
        # Flags that the two packages share, and who sets them.
        "fit_minibatch",
        "fit_stream",
    },
    # What must bear to be mapped is a function of the user.
    "bregman": {"vmap"},
    # The tensor that a schedule gets is an int32 in both packages.
    "ema": {"int32"},
    # Numbers drawn are those of another generator.
    "estimators.Estimator.draw": {"JAX", "array"},
    # In an example it maps over settings, as `torch.func.vmap`.
    "estimators.decoupled_gumbel_softmax": {"vmap"},
    # The design whose source is named.
    "init": {"optax"},
    "sgd": {"optax"},
}
DATA = {name: torch.as_tensor(array) for name, array in _calls.arrays().items()}
# Of torch's own, at the first use of forward mode.
JVP = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
REVERSE_ONLY = [
    name
    for name, function in functions(dk).items()
    if name in dt.__all__
    and "reverse mode only" in " ".join((function.__doc__ or "").split())
]


def test_the_file_is_what_its_command_writes():
    message = "run `python -m diffkm_torch._docstrings`"
    assert FILE.read_text(encoding="utf-8") == _merge.text(), message


def test_everything_that_mirrors_is_in_the_file():
    own = {"KMeansLoss", "VectorQuantizer", "sgd", "estimators.Estimator.draw"}
    own |= {"optimizers.GradientTransformation"}
    assert set(read()) == set(EVERYTHING) - own
    for name, text in read().items():
        assert attrgetter(name)(dt).__doc__ == text


def test_every_public_name_is_looked_at():
    names = {*dt.__all__, *(f"estimators.{name}" for name in es.__all__)}
    assert names - {"estimators"} <= set(EVERYTHING)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_docstring_is_complete(name):
    assert faults(FUNCTIONS[name], FUNCTIONS) == []


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_docstring_describes_no_argument_that_there_is_not(name):
    found = sections(inspect.getdoc(FUNCTIONS[name]))
    described = entries(found.get("Args", ""))
    assert set(described) == set(inspect.signature(FUNCTIONS[name]).parameters)


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_describes_its_fields(name):
    record = RECORDS[name]
    described = entries(sections(inspect.getdoc(record))["Attributes"])
    fields = getattr(record, "_fields", None) or getattr(record, "__members__", None)
    assert list(described) == list(fields or inspect.signature(record).parameters)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_describes_its_arguments(name):
    found = sections(inspect.getdoc(METHODS[name]))
    parameters = set(inspect.signature(METHODS[name]).parameters) - {"self"}
    assert set(entries(found["Args"])) == parameters
    assert "[" in found["Returns"]
    assert "Error: " in found["Raises"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_runs_with_torch_alone(name):
    failures = failures_of(EXAMPLES[name], name, {"torch": torch, "dt": dt, "es": es})
    assert not failures, failures


@pytest.mark.parametrize("name", EVERYTHING)
def test_no_word_of_jax_is_left(name):
    text = re.sub(BOTH, "", inspect.getdoc(EVERYTHING[name]))
    found = {match[0] for match in FOREIGN.finditer(text.replace("diffkm_jax", ""))}
    assert found == ALLOWED.get(name, set())


@pytest.mark.parametrize(
    "text",
    [
        "Where `jnp.inf` is.",
        "May be traced.",
        "Static by identity: static.",
        "By vmap.",
    ],
)
def test_a_word_of_jax_is_found(text):
    assert FOREIGN.search(text)


def test_the_package_says_what_examples_may_name():
    for name in ("torch", "dt", "es"):
        assert re.search(rf"\b{name}\b", dt.__doc__)


def tangent(name):
    """The directional derivative of a map in forward mode."""
    arrays = _calls.arguments(name, variant := next(_calls.variants(name)), DATA)
    floats = {k: a for k, a in arrays.items() if a.is_floating_point()}
    fixed = {k: a for k, a in arrays.items() if k not in floats}
    call = partial(_calls.call(dt, name, variant), **fixed)

    def function(*values):
        found = call(**dict(zip(floats, values, strict=True)))
        leaves = found if isinstance(found, tuple) else (found,)
        return sum(a.cos().sum() for a in leaves if a.is_floating_point())

    point = tuple(floats.values())
    return torch.func.jvp(function, point, point)[1]


@JVP
@pytest.mark.parametrize("name", REVERSE_ONLY)
def test_forward_mode_is_refused_where_it_is_said(name):
    said = "NotImplementedError: Forward mode" in read()[name]
    assert said == ("reverse mode only" in " ".join(read()[name].split()))
    assert said == (name in _words.ONLY_REVERSE)
    if said:
        with pytest.raises(NotImplementedError, match="jvp"):
            tangent(name)
    else:
        assert tangent(name).isfinite()


@JVP
def test_forward_mode_is_refused_by_a_declared_gradient_of_costs():
    def costs(z):
        return es.attach(z.sum(), z, z)

    assert "NotImplementedError" in es.attach.__doc__
    with pytest.raises(NotImplementedError, match="jvp"):
        torch.func.jvp(costs, (torch.ones(2),), (torch.ones(2),))


def test_what_an_exception_replaces_must_be_there():
    assert set(_words.exceptions()) <= set(read())
    with pytest.raises(ValueError, match="newton: its docstring in diffkm_jax has"):
        _words.in_torch("newton", {"": [("", "Other words.")]})


@pytest.mark.parametrize("rules", ["PROSE", "FORWARD", "CODE"])
def test_every_rule_has_something_to_change(rules, monkeypatch):
    text, all_rules = _merge.text(), getattr(_words, rules)
    for rule in all_rules:
        left = [other for other in all_rules if other != rule]
        monkeypatch.setattr(_words, rules, left)
        assert _merge.text() != text, rule


def test_help_says_it_where_jax_is_not_installed():
    program = (
        "import sys; sys.modules['jax'] = sys.modules['optax'] = None\n"
        "import diffkm_torch as dt\n"
        "assert 'Raises:' in dt.fit.__doc__\n"
        "assert 'diffkm_torch._docstrings._merge' not in sys.modules\n"
        "from diffkm_torch._docstrings import FILE, _merge\n"
        "assert _merge.text() == FILE.read_text(encoding='utf-8')\n"
    )
    root = Path(dt.__file__).parents[1]
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root)
    assert "    Raises:\n" in pydoc.plain(pydoc.render_doc(dt.fit))
