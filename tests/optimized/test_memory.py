"""Temporary memory, as XLA compiles by default: far below that of all distances."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

import diffkm_jax as dk


def temporary_bytes(f, *shapes):
    args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    return jax.jit(f).lower(*args).compile().memory_analysis().temp_size_in_bytes


# Statistics and losses.

# Beside which a block, of 8 MB, is little.
BIG = (400_003, 8), (512, 8)
NK_BYTES = 4 * BIG[0][0] * BIG[1][0]


def soft_loss(x, c):
    return dk.soft_kmeans_loss(x, c, temperature=1.0)


def hvp_fwd_rev(loss):
    def f(x, c):
        return jax.jvp(lambda c: jax.grad(loss, 1)(x, c), (c,), (jnp.cos(c),))[1]

    return f


def hvp_rev_rev(loss):
    def f(x, c):
        return jax.grad(lambda c: jnp.sum(jax.grad(loss, 1)(x, c) * jnp.cos(c)))(c)

    return f


@pytest.mark.parametrize("loss", [dk.kmeans_loss, soft_loss], ids=["hard", "soft"])
@pytest.mark.parametrize(
    "derivative",
    [lambda f: jax.value_and_grad(f, (0, 1)), hvp_fwd_rev, hvp_rev_rev],
    ids=["gradient", "forward over reverse", "reverse over reverse"],
)
def test_no_derivative_up_to_second_order_builds_an_n_by_k_array(loss, derivative):
    assert temporary_bytes(derivative(loss), *BIG) < NK_BYTES / 8


@pytest.mark.parametrize("distance", [dk.manhattan, dk.euclidean])
def test_other_distances_build_no_n_by_k_array(distance):
    def loss(x, c):
        return dk.kmeans_loss(x, c, distance=distance)

    assert temporary_bytes(jax.value_and_grad(loss, (0, 1)), *BIG) < NK_BYTES / 8


# Fits.


def bytes_of_gradient(mode, steps, temperature, n=20_000, k=8, d=4):
    def value(x, c):
        result = dk.fit(x, c, max_steps=steps, derivative=mode, temperature=temperature)
        return jnp.sum(jnp.cos(result.centroids))

    return temporary_bytes(jax.grad(value), (n, d), (k, d))


@pytest.mark.parametrize("temperature", [None, 0.5])
def test_memory_does_not_grow_with_the_steps_but_for_unrolled_centroids(temperature):
    few, many = (bytes_of_gradient("implicit", s, temperature) for s in (10, 410))
    assert many - few < 400 * 32
    few, many = (bytes_of_gradient("unrolled", s, temperature) for s in (10, 410))
    centroids = 8 * 4 * 4
    assert many - few < 400 * 8 * centroids
    assert few < 20_000 * 4 * 4 * 16


@pytest.mark.parametrize("temperature", [None, 0.8], ids=["hard", "soft"])
def test_a_certificate_builds_no_n_by_k_array(temperature):
    n, k, d = 800_000, 256, 8
    f = partial(dk.certificate, temperature=temperature)
    assert temporary_bytes(f, (n, d), (k, d)) < n * k * 4 / 16


def test_a_fit_on_batches_needs_a_batch_whatever_the_points_and_steps():
    def memory(n, num_steps):
        def centroids(x, c):
            options = {"num_steps": num_steps, "batch_size": 1000}
            return dk.fit_minibatch(jax.random.key(0), x, c, **options).centroids

        return temporary_bytes(centroids, (n, 8), (64, 8))

    few = memory(100_000, 10)
    assert few < 2 * 4 * 1000 * (64 + 8 * 8)
    assert memory(800_000, 10) < 1.01 * few
    assert memory(100_000, 1010) - few <= 2 * 4 * 1000


# Quantizers.


@pytest.mark.parametrize("method", ["rotation_trick", "nsvq"])
def test_no_quantizer_builds_an_array_of_every_pair(method):
    def total(x, c, noise):
        if method == "nsvq":
            found = dk.nsvq(x, c, noise)
        else:
            found = dk.quantize(x, c, method=dk.rotation_trick)
        values = jnp.sum(found.values**3)
        return values + found.codebook_loss + 0.5 * found.commitment_loss

    n, k, d = 1 << 18, 256, 8
    gradient = jax.grad(total, (0, 1))
    assert temporary_bytes(gradient, (n, d), (k, d), (n, d)) < n * k
