"""K-means inside larger programs: an encoder and a codebook learn through it."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from sklearn.datasets import load_digits

import diffkm_jax as dk

pytestmark = pytest.mark.slow

POINTS = jnp.asarray(load_digits().data[:300] / 16, "float64")
K = 4
STEPS = 100
ADAM = optax.adam(1e-3)
BATCH = 128
CODES, CODE_WIDTH, BOOK_SIZE = 8, 4, 64
WIDTHS = 64, 128, 64, CODES * CODE_WIDTH
AVERAGE = dk.ema(0.8)


# Autoencoders ------------------------------------------------------------------------


def network(key, widths, dtype):
    """Dense layers, normal weights scaled by their fan-in."""
    keys = jax.random.split(key, len(widths) - 1)
    return [
        (jax.random.normal(one, (n, m), dtype) * (2 / n) ** 0.5, jnp.zeros(m, dtype))
        for one, n, m in zip(keys, widths, widths[1:], strict=False)
    ]


def apply(layers, x):
    """A smooth network, its last layer linear."""
    for weight, bias in layers[:-1]:
        x = jax.nn.silu(x @ weight + bias[None])
    weight, bias = layers[-1]
    return x @ weight + bias[None]


def error(params, codes, x):
    """Squared error of the decoded codes, summed over pixels, mean over examples."""
    return jnp.mean(jnp.sum((apply(params["decoder"], codes) - x) ** 2, axis=1))


def descend(params, opt_state, grads):
    """One step of Adam."""
    updates, opt_state = ADAM.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def sample(key, points):
    """A random batch."""
    return points[jax.random.randint(key, (BATCH,), 0, len(points))]


@partial(jax.jit, static_argnames="num_steps")
def pretrained(key, points, *, num_steps):
    """An autoencoder trained on reconstruction alone, as one program."""
    keys = jax.random.split(key)
    params = {
        "encoder": network(keys[0], WIDTHS, points.dtype),
        "decoder": network(keys[1], WIDTHS[::-1], points.dtype),
    }

    def loss(params, x):
        return error(params, apply(params["encoder"], x), x)

    def step(carry, key):
        grads = jax.grad(loss)(carry[0], sample(key, points))
        return descend(*carry, grads), None

    start = params, ADAM.init(params)
    return jax.lax.scan(step, start, jax.random.split(key, num_steps))[0][0]


# Deep clustering ---------------------------------------------------------------------


def sharpened(log_q):
    """The target of DEC: squares, of which every cluster has the same say."""
    q = jnp.exp(log_q)
    p = q**2 / jnp.sum(q, axis=0, keepdims=True)
    return jax.lax.stop_gradient(p / jnp.sum(p, axis=1, keepdims=True))


def cluster_loss(params, points, temperature, derivative, *, target=None, tol=1e-6):
    """Squared error and the divergence of soft labels from their own target.

    The soft labels depend on where the centroids are, and these on all embeddings. The
    target is made of the soft labels, unless it is given, and held constant. Also
    returns the divergence, the target and the fit.

    Source: Xie, Girshick & Farhadi 2016 (DEC), https://arxiv.org/abs/1511.06335
    """
    z = apply(params["encoder"], points)
    options = {"temperature": temperature, "tol": tol, "derivative": derivative}
    fitted = dk.fit(z, params["centroids"], **options)
    log_q = jax.nn.log_softmax(-dk.pairwise(z, fitted.centroids) / temperature)
    target = sharpened(log_q) if target is None else target
    entropy = jax.scipy.special.xlogy(target, target)
    divergence = jnp.mean(jnp.sum(entropy - target * log_q, axis=1))
    return error(params, z, points) + divergence, (divergence, target, fitted)


def cluster_step(params, opt_state, points, temperature):
    """One step: embed all points, fit, differentiate all of it, and descend."""
    value_and_grad = jax.value_and_grad(cluster_loss, has_aux=True)
    found, grads = value_and_grad(params, points, temperature, "implicit")
    loss, (divergence, _, fitted) = found
    params, opt_state = descend(params, opt_state, grads)
    # The next fit starts from this one. As a fit has no gradient in its start, Adam has
    # not moved it.
    params = params | {"centroids": fitted.centroids}
    return params, opt_state, (loss, divergence, fitted.status)


# A vector-quantized autoencoder ------------------------------------------------------


class Codec(NamedTuple):
    """What training a vector-quantized autoencoder carries."""

    params: dict
    opt_state: object
    book: dk.State


def encode(params, x):
    """The vectors to quantize, several of each example, [n * CODES, CODE_WIDTH]."""
    return apply(params["encoder"], x).reshape(-1, CODE_WIDTH)


def start_codec(key, points, *, num_steps):
    """A pretrained autoencoder, and the codebook that k-means fits to its vectors."""
    params = pretrained(key, points, num_steps=num_steps)
    vectors = encode(params, points)
    start = dk.kmeans_plus_plus(key, vectors, BOOK_SIZE)
    params = params | {"codebook": dk.fit(vectors, start).centroids}
    book = dk.init(params["codebook"], optimizer=AVERAGE)
    return Codec(params, ADAM.init(params), book)


def vector_loss(params, x, method):
    """The loss of a VQ-VAE: squared error, codebook loss and commitment loss.

    Source: van den Oord, Vinyals & Kavukcuoglu 2017, https://arxiv.org/abs/1711.00937
    """
    quantized = dk.quantize(encode(params, x), params["codebook"], method=method)
    squared_error = error(params, quantized.values.reshape(len(x), -1), x)
    losses = quantized.codebook_loss + 0.25 * quantized.commitment_loss
    return squared_error + losses / len(x), squared_error


def vector_step(codec, key, points, *, method, averaged):
    """One step on a batch; the codebook moves by Adam, or by moving averages."""
    params, opt_state, book = codec
    x = sample(key, points)
    grads, squared_error = jax.grad(vector_loss, has_aux=True)(params, x, method)
    new, opt_state = descend(params, opt_state, grads)
    if averaged:
        book, _ = dk.update(encode(params, x), book, optimizer=AVERAGE)
        new = new | {"codebook": book.centroids}
    return Codec(new, opt_state, book), squared_error


# ------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def optax_promotes():
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def start():
    """A pretrained autoencoder with centroids, and the temperature of its clusters."""
    with jax.numpy_dtype_promotion("standard"):
        params = pretrained(jax.random.key(0), POINTS, num_steps=STEPS)
        z = apply(params["encoder"], POINTS)
        fitted = dk.fit(z, z[7 : 7 + K])
    # Twice that at which soft labels are those of Gaussian clusters, 2σ².
    return params | {"centroids": fitted.centroids}, 4 * fitted.loss / z.size


def test_an_autoencoder_trains_through_a_fit_in_one_compiled_step(start):
    params, temperature = start
    traces, reports = [], []

    @jax.jit
    def step(params, opt_state):
        traces.append(1)
        return cluster_step(params, opt_state, POINTS, temperature)

    opt_state = ADAM.init(params)
    for _ in range(40):
        before = params
        params, opt_state, report = step(params, opt_state)
        reports.append(report)
    assert len(traces) == 1
    losses, divergences, statuses = map(np.array, zip(*reports, strict=True))
    assert set(statuses) == {dk.Status.CONVERGED}
    assert losses[-1] < 0.9 * losses[0]
    assert divergences[-1] < 0.7 * divergences[0]
    # The start of the next fit is the last one, untouched by Adam.
    z = apply(before["encoder"], POINTS)
    last = dk.fit(z, before["centroids"], temperature=temperature, tol=1e-6)
    np.testing.assert_allclose(params["centroids"], last.centroids, rtol=1e-9)


def test_the_gradient_of_the_encoder_goes_through_the_fit(start):
    params, temperature = start
    loss = partial(cluster_loss, tol=0.0)
    flat, unravel = ravel_pytree(params["encoder"])
    direction = jnp.asarray(np.random.default_rng(0).normal(size=flat.shape))

    def of_encoder(mode, size, target=None):
        moved = params | {"encoder": unravel(flat + size * direction)}
        return loss(moved, POINTS, temperature, mode, target=target)

    def slope(mode):
        differentiated = jax.jit(jax.grad(partial(of_encoder, mode), has_aux=True))
        found, (_, target, fitted) = differentiated(0.0)
        assert int(fitted.status) == dk.Status.CONVERGED
        return float(found), target

    found, target = slope("implicit")
    # The target is no part of what is differentiated.
    value = jax.jit(lambda size: of_encoder("none", size, target)[0])
    expected = float(value(1e-6) - value(-1e-6)) / 2e-6
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert abs(slope("none")[0] / expected - 1) > 0.1


@pytest.mark.parametrize(
    ("method", "averaged"),
    [(dk.straight_through_vector, False), (dk.rotation_trick, True)],
)
def test_a_vector_quantized_autoencoder_trains_in_one_compiled_step(method, averaged):
    traces, errors = [], []
    start = start_codec(jax.random.key(0), POINTS, num_steps=STEPS)
    codec = start

    @jax.jit
    def step(codec, key):
        traces.append(1)
        options = {"method": method, "averaged": averaged}
        return vector_step(codec, key, POINTS, **options)

    for key in jax.random.split(jax.random.key(1), 80):
        codec, squared_error = step(codec, key)
        errors.append(float(squared_error))
    assert len(traces) == 1
    assert np.mean(errors[-10:]) < 0.8 * np.mean(errors[:10])
    book = codec.params["codebook"]
    assert not jnp.array_equal(book, start.params["codebook"])
    assert jnp.array_equal(book, codec.book.centroids) == averaged
    labels = dk.assign(encode(codec.params, POINTS), book)
    assert len(np.unique(labels)) > BOOK_SIZE // 3
