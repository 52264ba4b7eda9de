"""Programs as bytes: exported for any number of points, loaded without this package."""

import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import diffkm_jax as dk

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(300, 3)).astype(np.float32))
C = X[:5]


def shapes(*more, constraints=()):
    (n,) = export.symbolic_shape("n", constraints=constraints)
    points = jax.ShapeDtypeStruct((n, 3), jnp.float32)
    centroids = jax.ShapeDtypeStruct((5, 3), jnp.float32)
    return points, centroids, *(jax.ShapeDtypeStruct((n,), m) for m in more)


def round_trip(f, *specs, vjp_order=0):
    data = export.export(jax.jit(f))(*specs).serialize(vjp_order=vjp_order)
    return export.deserialize(data)


def same(a, b, rtol=1e-5):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-5)


FUNCTIONS = {
    "assign": dk.assign,
    "assign manhattan": partial(dk.assign, distance=dk.manhattan),
    "statistics": dk.statistics,
    "soft statistics": partial(dk.statistics, temperature=0.5),
    "kmeans_loss": jax.value_and_grad(dk.kmeans_loss, argnums=(0, 1)),
    "soft_kmeans_loss": jax.value_and_grad(
        partial(dk.soft_kmeans_loss, temperature=0.5), argnums=(0, 1)
    ),
    "manhattan loss": jax.value_and_grad(
        partial(dk.kmeans_loss, distance=dk.manhattan)
    ),
    "fit": dk.fit,
    "macqueen fit": partial(dk.fit, optimizer=dk.macqueen(), max_steps=50),
    "soft fit": partial(dk.fit, temperature=0.5, max_steps=20),
    "quantize": dk.quantize,
    "residual_quantize": lambda x, c: dk.residual_quantize(x, jnp.stack([c, 0.3 * c])),
    "product_quantize": lambda x, c: dk.product_quantize(x, c.T[:, :, None]),
    "finite_scalar_quantize": lambda x, c: dk.finite_scalar_quantize(
        x, levels=(5,) * c.shape[1]
    ),
    "lookup_free_quantize": lambda x, c: dk.lookup_free_quantize(x, temperature=1.0),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_exported_program_of_any_n_gives_the_same_results(name):
    loaded = round_trip(FUNCTIONS[name], *shapes())
    for n in (7, 300):
        same(loaded.call(X[:n], C), jax.jit(FUNCTIONS[name])(X[:n], C))


def test_more_points_than_a_block_are_exported_too():
    loaded = round_trip(partial(dk.statistics, block_size=32), *shapes())
    for n in (31, 32, 33, 300):
        same(loaded.call(X[:n], C), dk.statistics(X[:n], C))


def test_weights_and_their_zeros_are_exported():
    def f(x, c, w):
        return dk.fit(x, c, weights=w)

    loaded = round_trip(f, *shapes(jnp.float32))
    w = jnp.ones(300, jnp.float32).at[::3].set(0)
    same(loaded.call(X.at[::3].set(jnp.nan), C, w), f(X.at[::3].set(jnp.nan), C, w))


def test_a_policy_needs_to_know_that_there_are_points_enough():
    f = partial(dk.fit, empty="farthest")
    far = C.at[0].add(50)
    loaded = round_trip(f, *shapes(constraints=["n >= 5"]))
    same(loaded.call(X, far), f(X, far))


@pytest.mark.parametrize("options", [{}, {"temperature": 0.3, "max_steps": 50}])
def test_an_exported_fit_keeps_its_derivative(options):
    def value(x, c):
        return jnp.sum(jnp.cos(dk.fit(x, c, **options).centroids))

    loaded = round_trip(value, *shapes(), vjp_order=1)
    expected = jax.jit(jax.grad(value))(X, C)
    found = jax.grad(lambda x: loaded.call(x, C))(X)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_the_named_tuples_come_back_as_themselves():
    result = round_trip(dk.fit, *shapes()).call(X, C)
    assert isinstance(result, dk.FitResult)
    assert isinstance(result.state, dk.State)
    assert isinstance(round_trip(dk.statistics, *shapes()).call(X, C), dk.Statistics)
    assert isinstance(round_trip(dk.quantize, *shapes()).call(X, C), dk.Quantized)
    for name, kind in (
        ("residual_quantize", dk.Quantized),
        ("finite_scalar_quantize", dk.ScalarQuantized),
        ("lookup_free_quantize", dk.LookupFreeQuantized),
    ):
        found = round_trip(FUNCTIONS[name], *shapes()).call(X, C)
        assert isinstance(found, kind)
    certified = round_trip(dk.certificate, *shapes()).call(X, C)
    assert isinstance(certified, dk.Certificate)


def test_an_evaluation_is_exported_and_its_report_comes_back_as_itself():
    def measure(logits):
        key, record = jax.random.key(0), dk.estimators.reinmax()
        return dk.evaluate(key, lambda row: row[..., 0] ** 2, logits, record)

    loaded = round_trip(measure, jax.ShapeDtypeStruct((2, 3), jnp.float32))
    found = loaded.call(X[:2])
    assert isinstance(found, dk.Report)
    same(found, jax.jit(measure)(X[:2]))


LOAD = """
import sys
import jax, numpy as np
from jax import export
jax.config.update("jax_enable_x64", True)
folder = sys.argv[1]
arrays = np.load(folder + "/arrays.npz")
for name in ("assign", "loss", "fit"):
    loaded = export.deserialize(open(f"{folder}/{name}.bin", "rb").read())
    leaves = jax.tree.leaves(loaded.call(arrays["x"], arrays["c"]))
    for i, leaf in enumerate(leaves):
        np.testing.assert_allclose(leaf, arrays[f"{name}{i}"], rtol=1e-5, atol=1e-5)
assert not any(name.startswith("diffkm") for name in sys.modules)
"""


def test_a_process_without_this_package_loads_the_bytes_and_gets_the_same(tmp_path):
    functions = {
        "assign": dk.assign,
        "loss": jax.value_and_grad(dk.kmeans_loss, argnums=1),
        "fit": lambda x, c: dk.fit(x, c)[:5],
    }
    arrays = {"x": X, "c": C}
    for name, f in functions.items():
        data = export.export(jax.jit(f))(*shapes()).serialize()
        (tmp_path / f"{name}.bin").write_bytes(data)
        for i, leaf in enumerate(jax.tree.leaves(f(X, C))):
            arrays[f"{name}{i}"] = np.asarray(leaf)
    np.savez(tmp_path / "arrays.npz", **arrays)
    command = [sys.executable, "-c", LOAD, str(tmp_path)]
    subprocess.run(command, check=True, cwd=tmp_path)


def test_exported_for_several_platforms():
    exported = export.export(jax.jit(dk.fit), platforms=("cpu", "cuda"))(*shapes())
    assert exported.platforms == ("cpu", "cuda")
    assert len(exported.serialize()) < 100_000
