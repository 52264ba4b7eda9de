"""What estimators train: a categorical autoencoder, and the polynomial problem."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import resources
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffkm_jax import estimators as es

HELD_OUT = 297


class Model(NamedTuple):
    """What an estimator trains.

    Attributes:
        rates: Learning rates to try.
        start: A random key to parameters.
        loss: Parameters, an estimator and a key to the loss of a random batch.
        scores: Parameters, a key and a number of draws to what is reported, by name:
            settings are chosen by "train" or "expected".
        problem: Parameters to the cost of rows and the logits of some examples, which
            `evaluate` takes.
    """

    rates: tuple[float, ...]
    start: Callable[[jax.Array], Any]
    loss: Callable[[Any, es.Estimator, jax.Array], jax.Array]
    scores: Callable[[Any, jax.Array, int], dict[str, jax.Array]]
    problem: Callable[[Any], tuple[Callable[[jax.Array], jax.Array], jax.Array]]


# A categorical autoencoder -----------------------------------------------------------


def images() -> tuple[np.ndarray, np.ndarray]:
    """The digits in black and white, [n, 64], to train on and held out."""
    with resources.files("diffkm_jax").joinpath("data/digits.npz").open("rb") as file:
        pixels = np.load(file)["points"] >= 8
    order = np.random.default_rng(0).permutation(len(pixels))
    pixels = pixels[order].astype(np.float32)
    return pixels[HELD_OUT:], pixels[:HELD_OUT]


def layers(key: jax.Array, sizes: tuple[int, ...]) -> list[tuple[jax.Array, jax.Array]]:
    """Weights of a perceptron, uniform within ±1/√inputs."""

    def layer(i: int, n: int, m: int) -> tuple[jax.Array, jax.Array]:
        w, b = jax.random.split(jax.random.fold_in(key, i))
        draw = partial(jax.random.uniform, minval=-(n**-0.5), maxval=n**-0.5)
        return draw(w, (n, m)), draw(b, (m,))

    return [layer(i, *pair) for i, pair in enumerate(pairwise(sizes))]


def perceptron(weights: list, x: jax.Array) -> jax.Array:
    for w, b in weights[:-1]:
        x = jax.nn.relu(x @ w + b)
    w, b = weights[-1]
    return x @ w + b


def autoencoder(num_variables: int, num_categories: int) -> Model:
    """A variational autoencoder of binary images, its code some categorical variables.

    Its loss is the negative ELBO in nats: the estimator has the expected cross entropy
    of the image, the divergence from the uniform prior is in closed form. Layers as in
    Liu et al. 2023 (https://arxiv.org/abs/2304.08612), a quarter as wide.
    """
    shape = num_variables, num_categories
    width = num_variables * num_categories
    seen, unseen = map(jnp.asarray, images())

    def start(key: jax.Array) -> Any:
        encoder, decoder = jax.random.split(key)
        return {
            "encoder": layers(encoder, (64, 128, 64, width)),
            "decoder": layers(decoder, (width, 64, 128, 64)),
        }

    def encoded(params: Any, x: jax.Array) -> jax.Array:
        return perceptron(params["encoder"], x).reshape(-1, *shape)

    def cross_entropy(params: Any, x: jax.Array, rows: jax.Array) -> jax.Array:
        out = perceptron(params["decoder"], rows.reshape(*rows.shape[:-2], -1))
        return optax.sigmoid_binary_cross_entropy(out, x).sum(-1)

    def divergence(logits: jax.Array) -> jax.Array:
        log_p = jax.nn.log_softmax(logits)
        terms = jnp.exp(log_p) * (log_p + np.log(num_categories))
        return terms.sum((-2, -1))

    def negative_elbo(
        params: Any, x: jax.Array, record: es.Estimator, key: jax.Array
    ) -> jax.Array:
        logits = encoded(params, x)
        noise = record.draw(key, logits.shape, logits.dtype)
        cost = partial(cross_entropy, params, x)
        return jnp.mean(record.expect(cost, logits, noise) + divergence(logits))

    def loss(params: Any, record: es.Estimator, key: jax.Array) -> jax.Array:
        rows, noise = jax.random.split(key)
        index = jax.random.randint(rows, (50,), 0, len(seen))
        return negative_elbo(params, seen[index], record, noise)

    def scores(params: Any, key: jax.Array, num: int) -> dict[str, jax.Array]:
        def mean(x: jax.Array) -> jax.Array:
            draw = partial(negative_elbo, params, x, es.reinforce())
            return jax.lax.map(draw, jax.random.split(key, num)).mean()

        return {"train": mean(seen), "held out": mean(unseen)}

    def problem(params: Any) -> tuple[Callable[[jax.Array], jax.Array], jax.Array]:
        x = seen[:16]
        return partial(cross_entropy, params, x), encoded(params, x)

    return Model((1e-3, 3e-3), start, loss, scores, problem)


# The polynomial problem --------------------------------------------------------------


def polynomial(exponent: float) -> Model:
    """128 binary variables x, loss the mean of E |x − 0.45|^p over them."""
    num = 128

    def each(rows: jax.Array) -> jax.Array:
        return jnp.abs(rows[..., 0] - 0.45) ** exponent

    def cost(rows: jax.Array) -> jax.Array:
        return each(rows).mean(-1)

    def start(key: jax.Array) -> jax.Array:
        return jax.random.uniform(key, (num, 2), minval=-0.01, maxval=0.01)

    def loss(logits: jax.Array, record: es.Estimator, key: jax.Array) -> jax.Array:
        batch = jnp.broadcast_to(logits, (32, *logits.shape))
        noise = record.draw(key, batch.shape, batch.dtype)
        return record.expect(cost, batch, noise).mean()

    def scores(logits: jax.Array, key: jax.Array, num: int) -> dict[str, jax.Array]:
        del key, num
        return {"expected": es.exact().expect(each, logits).mean()}

    def problem(logits: jax.Array) -> tuple[Callable, jax.Array]:
        return cost, logits

    return Model((0.01, 0.03), start, loss, scores, problem)
