"""The table of the documentation that says which derivatives each function has."""

from functools import partial
from inspect import signature

import jax
import jax.numpy as jnp
import pytest
from promises import promises

import diffkm_jax as dk
from diffkm_torch import _calls, _parity

DATA = {name: jnp.asarray(array) for name, array in _calls.arrays().items()}
KEY = jax.random.key(0)
MESH = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
# Functions without a twin in torch.
OTHERS = {
    "certificate": lambda points, centroids: dk.certificate(points, centroids),
    "fit_minibatch": lambda points, centroids: dk.fit_minibatch(
        KEY, points, centroids, num_steps=3, batch_size=4
    ),
    "fit_restarts": lambda points: dk.fit_restarts(KEY, points, 3, num_restarts=2),
    "fit_sharded": lambda points, centroids: dk.fit_sharded(
        points, centroids, mesh=MESH
    ),
    "kmeans_parallel": lambda points: dk.kmeans_parallel(KEY, points, 3),
    "kmeans_plus_plus": lambda points: dk.kmeans_plus_plus(KEY, points, 3),
    "random_points": lambda points: dk.random_points(KEY, points, 3),
}
# Returned numbers whose derivative is none: labels, flags.
NOT_IN_TABLE = {
    "assign",
    "assign_bounded",
}


PROMISES = [pytest.param(name, cells, id=name) for name, cells in promises()]


def floats(tree):
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]


def scalar(tree):
    return sum(jnp.sum(jnp.cos(x)) for x in floats(tree))


def program(name):
    """A scalar function of a dictionary of floating arrays, and such a dictionary."""
    name, _, option = name.partition("(")
    if name in OTHERS:
        arrays = {key: DATA[key] for key in signature(OTHERS[name]).parameters}
        function = OTHERS[name]
    else:
        key, _, value = option.rstrip(")").partition("=")
        variant = {key: {"True": True}.get(value, value)} if key else {}
        variant = variant or next(_calls.variants(name))
        arrays = _calls.arguments(name, variant, DATA)
        arrays = {key: jnp.asarray(array) for key, array in arrays.items()}
        function = _calls.call(dk, name, variant)
    fixed = {k: x for k, x in arrays.items() if not floats(x)}
    moved = {k: x for k, x in arrays.items() if floats(x)}
    return lambda moved: scalar(function(**moved, **fixed)), moved


def test_every_function_of_arrays_is_in_the_table():
    found = {param.id.partition("(")[0] for param in PROMISES}
    mirrored = set(_parity.mirrored())
    assert found == mirrored - NOT_IN_TABLE | set(OTHERS)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "promised"), PROMISES)
def test_every_function_does_what_the_table_promises(name, promised):
    function, arrays = program(name)
    gradient = jax.grad(function)
    of_gradient = {
        "any": {
            "forward": lambda x: jax.jvp(gradient, (x,), (x,))[1],
            "reverse": jax.grad(lambda x: scalar(gradient(x))),
        },
        "reverse: of what is declared": {
            "reverse": jax.grad(lambda x: scalar(gradient(x)))
        },
    }
    meaning, in_reverse, forward, second, mapped = promised
    assert (in_reverse, mapped) == ("yes", "yes")
    derivatives = of_gradient[second] | {
        "grad": gradient,
        "vmap": lambda x: jax.vmap(gradient)(jax.tree.map(lambda a: a[None], x)),
    }
    jvp = partial(lambda f, x: jax.jvp(f, (x,), (x,))[1], function)
    refused = {"yes": (), "TypeError": (jvp,)}[forward]
    if not refused:
        derivatives["jvp"] = jvp
    found = jax.jit(lambda x: {key: f(x) for key, f in derivatives.items()})(arrays)
    infinite = {k for k, tree in found.items() if not all(map(finite, floats(tree)))}
    assert infinite == set()
    for derivative in refused:
        with pytest.raises(TypeError, match="forward-mode"):
            derivative(arrays)
    is_zero = all(float(jnp.sum(jnp.abs(x))) == 0 for x in floats(found["grad"]))
    assert not (is_zero and "exact" in meaning)
    assert is_zero or meaning != "zero"


def finite(array):
    return bool(jnp.isfinite(array).all())
