"""Every public docstring: what it must say, and its example, which must run."""

import doctest
import inspect
import re
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from test_layout import functions

import diffkm_jax as dk
import diffkm_torch as dt
from diffkm_jax import plotting
from diffkm_jax.cluster import KMeans
from diffkm_torch import agreement, bridge

if TYPE_CHECKING:
    from jaxtyping import Array, Float

es = dk.estimators

# What an example may name: the package docstring says so.
NAMES = {"jax": jax, "jnp": jnp, "np": np, "optax": optax, "dk": dk, "es": es}
TORCH_NAMES = {"torch": torch, "dt": dt}

SECTIONS = ("Args", "Returns", "Raises", "Example", "Source", "Attributes")
ARRAY = re.compile(r"\b(Float|Int|Bool)\[|\bArrayLike\b|\bTensor\b")
# Documented where they are defined, field by field.
RECORDS = (
    "State Statistics FitResult StreamResult Certificate Report Quantized "
    "LookupFreeQuantized ScalarQuantized StepsReport"
)
RECORD = re.compile(rf"\b({'|'.join(RECORDS.split())})\b")
AXIS = r"[\w*.]+( \+ \w+)?"
WORD = r"\b([Ss]calar|number|any shape)\b"
SHAPE = re.compile(rf"\[({AXIS}(, {AXIS})*)?\]|{WORD}")
UNIT = re.compile(r"\bunits?\b|\bnats\b")
REFERENCE = re.compile(r"As in `(\w+)`")


# Maps and estimators may have the same name.
DOCUMENTED = {
    **functions(dk),
    **{f"estimators.{name}": f for name, f in functions(es).items()},
    **functions(plotting),
    **functions(agreement),
    **functions(bridge),
    "cluster.KMeans": KMeans,
    "sgd": dt.sgd,
    "KMeansLoss": dt.KMeansLoss,
    "VectorQuantizer": dt.VectorQuantizer,
}
EXAMPLES = DOCUMENTED | {"estimators.Estimator": es.Estimator}


def sections(text):
    """The sections of a docstring by name; what comes before them is `""`."""
    found, current = {"": ""}, ""
    for line in text.splitlines():
        head = re.match(r"(\w+):", line)
        if head and head[1] in SECTIONS:
            current = head[1]
            line = line.removeprefix(head[0])
        found[current] = found.get(current, "") + line + "\n"
    return found


def entries(section):
    """The entries of a section by name: a name and a colon at the first indent."""
    parts = re.split(r"^ {4}\*{0,2}(\w+): ", section, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def is_array(annotation):
    return bool(ARRAY.search(str(annotation)))


def arguments(function):
    """The entries of the arguments of a function."""
    return entries(sections(inspect.getdoc(function) or "").get("Args", ""))


def entry(function, name, documented=DOCUMENTED):
    """The entry of an argument, or that of the same name which it refers to."""
    text = arguments(function).get(name, "")
    reference = REFERENCE.match(text)
    if not reference:
        return text
    return entry(documented[reference[1]], name, documented)


def faults(function, documented=DOCUMENTED):
    """What the docstring of a function or a layer does not say."""
    text = inspect.getdoc(function) or ""
    found, signature = sections(text), inspect.signature(function)
    annotations = {p.name: p.annotation for p in signature.parameters.values()}
    said = {name: entry(function, name, documented) for name in annotations}
    returns = found.get("Returns", "")
    record = RECORD.search(str(signature.return_annotation)) and "`" in returns
    wanted = ["Args"] * bool(annotations) + ["Returns", "Raises", "Example", "Source"]
    missing = {f"no {name}": not found.get(name, "").strip() for name in wanted}
    missing["no gradient"] = not re.search("gradient|derivative", text)
    missing["no example"] = ">>> " not in found.get("Example", "")
    missing["no unit"] = not UNIT.search(" ".join([returns, *said.values()]))
    nothing = str(signature.return_annotation) == "None"
    shaped = record or nothing or SHAPE.search(returns)
    missing["the result has no shape"] = not shaped
    for name, annotation in annotations.items():
        array, words = is_array(annotation), said[name]
        missing[f"{name} is not described"] = not words.strip()
        missing[f"{name} has no shape"] = array and not SHAPE.search(words)
        # The annotations of torch do not say what a tensor holds.
        truth = "Bool[" in str(annotation)
        truth = truth or ("Tensor" in str(annotation) and ", bool" in words)
        quantity = array and not truth
        missing[f"{name} has no unit"] = quantity and not UNIT.search(words)
    return [fault for fault, is_missing in missing.items() if is_missing]


def failures_of(function, name, names):
    """What the examples of a docstring print where they should print something else."""
    finder = doctest.DocTestFinder(recurse=False)
    runner, text = doctest.DocTestRunner(verbose=False), []
    for test in finder.find(function, name, module=False, globs=dict(names)):
        runner.run(test, out=text.append)
    assert runner.tries > 0, f"{name} has no example"
    return "".join(text)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_docstring_is_complete(name):
    assert faults(DOCUMENTED[name]) == []


def test_the_record_is_complete():
    found = sections(inspect.getdoc(es.Estimator))
    described = entries(found["Attributes"])
    assert set(described) == set(inspect.signature(es.Estimator).parameters)
    assert ">>> " in found["Example"]
    assert "gradient" in found[""]


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_runs(name):
    function = EXAMPLES[name]
    of_torch = inspect.unwrap(function).__module__.startswith("diffkm_torch")
    names = NAMES | TORCH_NAMES if of_torch else NAMES
    failures = failures_of(function, name, names)
    assert not failures, failures


def test_the_package_says_what_examples_may_name():
    for name in NAMES:
        assert re.search(rf"\b{name}\b", dk.__doc__), name


def complete(points: "Float[Array, 'n d']", k: int) -> "Float[Array, 'k d']":
    """Some rows.

    The gradient is that of a gather.

    Args:
        points: Data, [n, d], in data units.
        k: How many.

    Returns:
        Rows, [k, d].

    Raises:
        ValueError: `k` is above n.

    Example:
        >>> complete(jnp.zeros((2, 1)), 1).tolist()
        [[0.0]]

    Source: Lloyd 1982
    """
    return points[:k]


MUTATIONS = {
    "no gradient": ("The gradient is that", "It is the work"),
    "k is not described": ("        k: How many.\n", ""),
    "points has no shape": ("Data, [n, d]", "Data"),
    "the result has no shape": ("Rows, [k, d].", "Rows."),
    "points has no unit": (", in data units", ""),
    "no unit": (", in data units", ""),
    "no Returns": ("Returns:\n        Rows, [k, d].\n", ""),
    "no Raises": ("Raises:\n        ValueError: `k` is above n.\n", ""),
    "no Source": ("Source: Lloyd 1982", ""),
    "no Example": ("Example:", "For example:"),
    "no example": (">>> complete(jnp.zeros((2, 1)), 1).tolist()", "see the README"),
    "no Args": ("Args:", "Arguments:"),
}


def with_docstring(text):
    def made_up(points: "Float[Array, 'n d']", k: int) -> "Float[Array, 'k d']":
        return complete(points, k)

    made_up.__doc__ = text
    return made_up


def test_a_complete_docstring_has_no_faults():
    assert faults(complete) == []
    assert failures_of(complete, "complete", NAMES | {"complete": complete}) == ""


@pytest.mark.parametrize("fault", MUTATIONS)
def test_what_a_docstring_lacks_is_found(fault):
    old, new = MUTATIONS[fault]
    assert complete.__doc__.count(old) == 1
    assert fault in faults(with_docstring(complete.__doc__.replace(old, new)))


def test_no_docstring_lacks_everything():
    found = faults(with_docstring(None))
    assert {"no Args", "no Raises", "no Source", "no unit", "no example"} <= set(found)


@pytest.mark.parametrize("shape", ["[1 + m, ..., k]", "[]", "[*batch]", "Scalar"])
def test_a_shape_is_known_for_one(shape):
    assert SHAPE.search(f"Noise, {shape}, floating.")


@pytest.mark.parametrize("words", ["[these words here]", "scalars", "n by d"])
def test_other_words_are_no_shape(words):
    assert not SHAPE.search(f"One of {words}.")


def test_a_reference_is_to_an_entry_that_there_is():
    assert entry(dk.fit_restarts, "weights") == entry(dk.fit, "weights")
    text = complete.__doc__.replace("Data, [n, d], in data units.", "As in `fit`.")
    assert faults(with_docstring(text)) == []
    text = text.replace("As in `fit`", "As in `hard`")
    assert "points has no shape" in faults(with_docstring(text))


def test_an_example_that_prints_something_else_is_found():
    text = complete.__doc__.replace("[[0.0]]", "[[1.0]]")
    failures = failures_of(
        with_docstring(text), "made_up", NAMES | {"complete": complete}
    )
    assert "Expected:\n    [[1.0]]\nGot:\n    [[0.0]]" in failures


def test_a_docstring_without_an_example_does_not_pass_for_one_that_runs():
    with pytest.raises(AssertionError, match="made_up has no example"):
        failures_of(with_docstring("Nothing."), "made_up", NAMES)
