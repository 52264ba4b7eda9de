"""K-means inside larger programs, on the embedded digits: what it brings and costs.

    python benchmarks/pipelines.py [--quick] [item ...]

Items: cluster, vq, influence; all of them without one.

cluster trains an autoencoder through a fit to its own embeddings, in one jitted step,
with each way to differentiate that fit. vq trains a vector-quantized autoencoder.
influence asks the derivative of a fit which points move a centroid, and removes them.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.flatten_util import ravel_pytree
from scipy.optimize import linear_sum_assignment

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # A checkout will do.

import diffkm_jax as dk

# Tests import this module without its folder on the path: `timing` is imported late.

Layers = list[tuple[jax.Array, jax.Array]]
Params = dict[str, Any]

ADAM = optax.adam(1e-3)
BATCH = 128


def digits(dtype: Any) -> tuple[jax.Array, np.ndarray]:
    """1797 images of 64 pixels from 0 to 1, and their classes."""
    with resources.files("diffkm_jax").joinpath("data/digits.npz").open("rb") as file:
        data = np.load(file)
        return jnp.asarray(data["points"] / 16, dtype), data["digits"]


# Autoencoders ------------------------------------------------------------------------


def network(key: jax.Array, widths: Sequence[int], dtype: Any) -> Layers:
    """Dense layers, normal weights scaled by their fan-in."""
    keys = jax.random.split(key, len(widths) - 1)
    layers = []
    for one, n, m in zip(keys, widths, widths[1:], strict=False):
        weight = jax.random.normal(one, (n, m), dtype) * np.sqrt(2 / n).item()
        layers.append((weight, jnp.zeros(m, dtype)))
    return layers


def apply(layers: Layers, x: jax.Array) -> jax.Array:
    """A smooth network, its last layer linear."""
    for i, (weight, bias) in enumerate(layers):
        x = x @ weight + bias[None]
        x = x if i == len(layers) - 1 else jax.nn.silu(x)
    return x


def autoencoder(key: jax.Array, widths: Sequence[int], dtype: Any) -> Params:
    """An encoder and its mirror image."""
    keys = jax.random.split(key)
    encoder = network(keys[0], widths, dtype)
    return {"encoder": encoder, "decoder": network(keys[1], widths[::-1], dtype)}


def error(params: Params, codes: jax.Array, x: jax.Array) -> jax.Array:
    """Squared error of the decoded codes, summed over pixels, mean over examples."""
    return jnp.mean(jnp.sum((apply(params["decoder"], codes) - x) ** 2, axis=1))


def descend(params: Params, opt_state: Any, grads: Params) -> tuple[Params, Any]:
    """One step of Adam."""
    updates, opt_state = ADAM.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def sample(key: jax.Array, points: jax.Array) -> jax.Array:
    """A random batch."""
    return points[jax.random.randint(key, (BATCH,), 0, len(points))]


@partial(jax.jit, static_argnums=(2, 3))
def pretrained(
    key: jax.Array, points: jax.Array, widths: tuple[int, ...], num_steps: int
) -> Params:
    """An autoencoder trained on reconstruction alone, as one program."""
    params = autoencoder(key, widths, points.dtype)

    def loss(params: Params, x: jax.Array) -> jax.Array:
        return error(params, apply(params["encoder"], x), x)

    def step(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
        grads = jax.grad(loss)(carry[0], sample(key, points))
        return descend(*carry, grads), None

    start = params, ADAM.init(params)
    return lax.scan(step, start, jax.random.split(key, num_steps))[0][0]


# Deep clustering ---------------------------------------------------------------------

EMBEDDING = 64, 256, 128, 10
NUM_CLUSTERS = 10
# Of the divergence in the loss, beside the squared error.
DIVERGENCE_WEIGHT = 1.0
# Temperature in units of 2σ², at which soft labels are those of Gaussian clusters.
SOFTNESS = 2.0
TOL = 1e-6
MODES = {
    "implicit": 'soft fit, derivative="implicit"',
    "one_step": 'soft fit, derivative="one_step"',
    "none": 'soft fit, derivative="none"',
    "hard": "hard fit, implicit",
    "parameters": "no fit: centroids are parameters, as in DEC",
}


class Progress(NamedTuple):
    """What a step of deep clustering reports."""

    loss: jax.Array
    divergence: jax.Array
    labels: jax.Array
    status: jax.Array


def fit_embeddings(
    z: jax.Array, start: jax.Array, temperature: jax.Array, mode: str, tol: float
) -> dk.FitResult:
    """The clustering that the loss is of, differentiated as the mode says."""
    if mode == "hard":
        return dk.fit(z, start, tol=tol)
    soft = partial(dk.fit, z, start, temperature=temperature, tol=tol)
    if mode == "parameters":
        return soft(max_steps=0, derivative="none")._replace(centroids=start)
    return soft(derivative=mode)


def sharpened(log_q: jax.Array) -> jax.Array:
    """The target of DEC: squares, of which every cluster has the same say."""
    q = jnp.exp(log_q)
    p = q**2 / jnp.sum(q, axis=0, keepdims=True)
    return lax.stop_gradient(p / jnp.sum(p, axis=1, keepdims=True))


def cluster_loss(
    params: Params,
    points: jax.Array,
    temperature: jax.Array,
    mode: str,
    *,
    target: jax.Array | None = None,
    tol: float = TOL,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, dk.FitResult]]:
    """Squared error and the divergence of soft labels from their own target.

    The soft labels depend on where the centroids are, and these on all embeddings. The
    target is made of the soft labels, unless it is given, and held constant. Also
    returns the divergence, the target and the fit.

    Source: Xie, Girshick & Farhadi 2016 (DEC), https://arxiv.org/abs/1511.06335
    """
    z = apply(params["encoder"], points)
    fitted = fit_embeddings(z, params["centroids"], temperature, mode, tol)
    log_q = jax.nn.log_softmax(-dk.pairwise(z, fitted.centroids) / temperature)
    target = sharpened(log_q) if target is None else target
    entropy = jax.scipy.special.xlogy(target, target)
    divergence = jnp.mean(jnp.sum(entropy - target * log_q, axis=1))
    loss = error(params, z, points) + DIVERGENCE_WEIGHT * divergence
    return loss, (divergence, target, fitted)


@partial(jax.jit, static_argnames="mode")
def cluster_step(
    params: Params,
    opt_state: Any,
    points: jax.Array,
    temperature: jax.Array,
    *,
    mode: str,
) -> tuple[Params, Any, Progress]:
    """One step: embed all points, fit, differentiate all of it, and descend."""
    value_and_grad = jax.value_and_grad(cluster_loss, has_aux=True)
    found, grads = value_and_grad(params, points, temperature, mode)
    loss, (divergence, _, fitted) = found
    params, opt_state = descend(params, opt_state, grads)
    if mode != "parameters":
        # The next fit starts from this one. As a fit has no gradient in its start,
        # Adam has not moved it.
        params = params | {"centroids": fitted.centroids}
    report = Progress(loss, divergence, fitted.labels, fitted.status)
    return params, opt_state, report


@partial(jax.jit, static_argnames="mode")
def divergence_gradient(
    params: Params, points: jax.Array, temperature: jax.Array, *, mode: str
) -> jax.Array:
    """What the divergence alone tells the encoder, as one vector."""

    def divergence(encoder: Layers) -> jax.Array:
        all_params = params | {"encoder": encoder}
        return cluster_loss(all_params, points, temperature, mode)[1][0]

    return ravel_pytree(jax.grad(divergence)(params["encoder"]))[0]


def train_clusters(
    params: Params, points: jax.Array, temperature: Any, mode: str, num_steps: int
) -> list[Progress]:
    """Deep clustering from pretrained layers and the centroids of their embedding."""
    opt_state, reports = ADAM.init(params), []
    for _ in range(num_steps):
        params, opt_state, report = cluster_step(
            params, opt_state, points, temperature, mode=mode
        )
        reports.append(report)
    return reports


class Start(NamedTuple):
    """A pretrained autoencoder with centroids, labels by them, and 2σ² around them."""

    params: Params
    labels: jax.Array
    unit: jax.Array


def start_clusters(key: jax.Array, points: jax.Array, num_steps: int) -> Start:
    """Pretrains, and clusters the embedding by k-means."""
    params = pretrained(key, points, EMBEDDING, num_steps)
    z = apply(params["encoder"], points)
    fitted = dk.fit_restarts(key, z, NUM_CLUSTERS)
    params = params | {"centroids": fitted.centroids}
    return Start(params, fitted.labels, 2 * fitted.loss / z.size)


def agreement(labels: Any, classes: np.ndarray) -> tuple[float, float]:
    """Accuracy under the best matching of labels to classes, and their NMI.

    NMI is the mutual information over the mean of both entropies.
    """
    joint = np.zeros((NUM_CLUSTERS, 10))
    np.add.at(joint, (np.asarray(labels), classes), 1 / len(classes))
    matched = joint[linear_sum_assignment(-joint)].sum()

    def entropy(p: np.ndarray) -> float:
        return -(p[p > 0] * np.log(p[p > 0])).sum()

    entropies = entropy(joint.sum(0)) + entropy(joint.sum(1))
    return matched, 2 * (1 - entropy(joint.ravel()) / entropies)


def spread(values: Iterable[float], form: str = ".3f") -> str:
    """Mean and range, as text."""
    values = list(values)
    mean, low, high = np.mean(values), min(values), max(values)
    return f"{mean:{form}} ({low:{form}} to {high:{form}})"


def spreads(found: Iterable[tuple[float, ...]], *forms: str) -> list[str]:
    """That of each entry of some tuples."""
    columns = zip(*found, strict=True)
    return [spread(column, form) for column, form in zip(columns, forms, strict=True)]


def flags(runs: list[list[Progress]]) -> str:
    """The flags that the fits of some trainings ended with, and how often."""
    seen = [dk.Status(int(report.status)) for run in runs for report in run]
    counted = sorted((flag, seen.count(flag)) for flag in set(seen))
    return ", ".join(f"{' and '.join(str(f).split('|'))} {n}" for f, n in counted)


def gradient_errors(starts: list[Start], points: jax.Array, mode: str) -> str:
    """Relative error of what the divergence tells the encoder, at the starts."""
    found = []
    for params, _, unit in starts:
        gradient = partial(divergence_gradient, params, points, SOFTNESS * unit)
        exact = gradient(mode="implicit")
        wrong = jnp.linalg.norm(gradient(mode=mode) - exact)
        found.append(float(wrong / jnp.linalg.norm(exact)))
    return spread(found, ".2f")


def cluster(quick: bool) -> None:
    """Item cluster: what the derivative of the fit brings to deep clustering."""
    from timing import interleaved, median, table

    points, classes = digits(jnp.float32)
    num_steps = 50 if quick else 200
    keys = [jax.random.key(seed) for seed in range(2 if quick else 3)]
    starts = [start_clusters(key, points, 500 if quick else 3000) for key in keys]
    pixels = [dk.fit_restarts(key, points, NUM_CLUSTERS).labels for key in keys]

    def scored(labels: Iterable[Any]) -> tuple[list[tuple[float, float]], list[str]]:
        found = [agreement(one, classes) for one in labels]
        return found, spreads(found, ".3f", ".3f")

    def trained(mode: str, softness: float) -> list[list[Progress]]:
        return [
            train_clusters(start.params, points, softness * start.unit, mode, num_steps)
            for start in starts
        ]

    def one_step(mode: str) -> Callable[[], Any]:
        params, _, unit = starts[0]
        arguments = params, ADAM.init(params), points, SOFTNESS * unit
        return lambda: jax.block_until_ready(cluster_step(*arguments, mode=mode))

    times = interleaved({mode: one_step(mode) for mode in MODES}, 3 if quick else 7)
    rows = [
        ("k-means on pixels", *scored(pixels)[1], *[""] * 4),
        ("k-means on the embedding", *scored(s.labels for s in starts)[1], *[""] * 4),
    ]
    scores = {}
    for mode, name in MODES.items():
        runs = trained(mode, SOFTNESS)
        scores[mode], cells = scored(run[-1].labels for run in runs)
        divergence = f"{np.mean([run[-1].divergence for run in runs]):.4f}"
        compared = mode in ("one_step", "none")
        wrong = gradient_errors(starts, points, mode) if compared else ""
        ended = "" if mode == "parameters" else flags(runs)
        rows.append((name, *cells, divergence, wrong, ended, median(times[mode])))
    head = (
        "trained through",
        "accuracy",
        "NMI",
        "KL at the end",
        "error of its gradient",
        "fits ended",
        "a step",
    )
    title = f"Deep clustering: mean and range of {len(keys)} seeds, {num_steps} steps"
    table(title, head, rows)
    print(
        "\nError of its gradient: of KL's at the start, in the encoder, relative to "
        "that of implicit.\nWhether it shows in the labels, seed by seed:\n"
    )
    for other in ("none", "one_step", "parameters"):
        print(difference(scores["implicit"], scores[other], other))

    rows = []
    for mode in ("implicit", "one_step", "none"):
        runs = trained(mode, 2 * SOFTNESS)
        cells = scored(run[-1].labels for run in runs)[1]
        rows.append((MODES[mode], *cells, flags(runs)))
    head = "trained through", "accuracy", "NMI", "fits ended"
    table("The same at twice the temperature", head, rows)
    print(
        "\nLINEAR_SOLVE in a fit that converged: it rests on a saddle. Two centroids "
        "have merged, and\nevery fit starts where the last one ended. The other "
        "derivatives solve no system, and\nnotice nothing."
    )


def difference(
    ours: list[tuple[float, float]], theirs: list[tuple[float, float]], other: str
) -> str:
    """What a derivative gains over another, in the mean and at each seed, as text."""
    texts = []
    gains = (np.array(ours) - np.array(theirs)).T
    for name, gain in zip(("accuracy", "NMI"), gains, strict=True):
        each = ", ".join(f"{one:+.3f}" for one in gain)
        texts.append(f"{name} {gain.mean():+.3f} ({each})")
    return f"- implicit over {other}: {'; '.join(texts)}"


# A vector-quantized autoencoder ------------------------------------------------------

CODES = 8
CODE_WIDTH = 4
BOOK_SIZE = 64
VECTOR_WIDTHS = 64, 128, 64, CODES * CODE_WIDTH
COMMITMENT = 0.25
AVERAGE = dk.ema(0.8)
METHODS = {
    "straight_through_vector": dk.straight_through_vector,
    "rotation_trick": dk.rotation_trick,
}


class Codec(NamedTuple):
    """What training a vector-quantized autoencoder carries."""

    params: Params
    opt_state: Any
    book: dk.State


def encode(params: Params, x: jax.Array) -> jax.Array:
    """The vectors to quantize, several of each example, [n * CODES, CODE_WIDTH]."""
    return apply(params["encoder"], x).reshape(-1, CODE_WIDTH)


def start_codec(key: jax.Array, points: jax.Array, num_steps: int) -> Codec:
    """A pretrained autoencoder, and the codebook that k-means fits to its vectors."""
    params = pretrained(key, points, VECTOR_WIDTHS, num_steps)
    vectors = encode(params, points)
    start = dk.kmeans_plus_plus(key, vectors, BOOK_SIZE)
    params = params | {"codebook": dk.fit(vectors, start).centroids}
    book = dk.init(params["codebook"], optimizer=AVERAGE)
    return Codec(params, ADAM.init(params), book)


def vector_loss(
    params: Params, x: jax.Array, method: Callable
) -> tuple[jax.Array, tuple[jax.Array, dk.Quantized]]:
    """The loss of a VQ-VAE: squared error, codebook loss and commitment loss.

    Source: van den Oord, Vinyals & Kavukcuoglu 2017, https://arxiv.org/abs/1711.00937
    """
    quantized = dk.quantize(encode(params, x), params["codebook"], method=method)
    squared_error = error(params, quantized.values.reshape(len(x), -1), x)
    losses = quantized.codebook_loss + COMMITMENT * quantized.commitment_loss
    return squared_error + losses / len(x), (squared_error, quantized)


@partial(jax.jit, static_argnames=("method", "averaged"))
def vector_step(
    codec: Codec, key: jax.Array, points: jax.Array, *, method: Callable, averaged: bool
) -> tuple[Codec, jax.Array]:
    """One step on a batch; the codebook moves by Adam, or by moving averages."""
    params, opt_state, book = codec
    x = sample(key, points)
    grads, (squared_error, _) = jax.grad(vector_loss, has_aux=True)(params, x, method)
    new, opt_state = descend(params, opt_state, grads)
    if averaged:
        book, _ = dk.update(encode(params, x), book, optimizer=AVERAGE)
        new = new | {"codebook": book.centroids}
    return Codec(new, opt_state, book), squared_error


def unexplained(squared_error: Any, points: jax.Array) -> float:
    """A squared error relative to that of the mean image, in percent."""
    return 100 * float(squared_error / jnp.sum(jnp.var(points, axis=0)))


def use(labels: jax.Array) -> tuple[int, float]:
    """How many entries of the codebook are used, and the perplexity of their use."""
    p = np.bincount(labels, minlength=BOOK_SIZE) / len(labels)
    p = p[p > 0]
    return len(p), float(np.exp(-(p * np.log(p)).sum()))


def vq(quick: bool) -> None:
    """Item vq: gradients through a quantizer, and codebooks of both kinds."""
    from timing import interleaved, median, table

    points, _ = digits(jnp.float32)
    order = np.random.default_rng(0).permutation(len(points))
    train, held_out = points[order[:1500]], points[order[1500:]]
    before, num_steps = (200, 200) if quick else (500, 1500)
    keys = [jax.random.key(seed) for seed in range(2 if quick else 3)]

    def measured(params: Params) -> tuple[float, int, float]:
        _, (squared_error, quantized) = vector_loss(params, held_out, dk.rotation_trick)
        return unexplained(squared_error, held_out), *use(quantized.labels)

    def trained(codec: Codec, key: jax.Array, **options: Any) -> Params:
        for one in jax.random.split(key, num_steps):
            codec, _ = vector_step(codec, one, train, **options)
        return codec.params

    def without(key: jax.Array) -> float:
        params = pretrained(key, train, VECTOR_WIDTHS, before + num_steps)
        left = error(params, apply(params["encoder"], held_out), held_out)
        return unexplained(left, held_out)

    starts = [start_codec(key, train, before) for key in keys]
    forms = ".1f", ".0f", ".1f"
    at_start = spreads([measured(start.params) for start in starts], *forms)
    rows = [
        ("no quantizer", "", spread(map(without, keys), ".1f"), "", "", ""),
        ("the start", "dk.fit", *at_start, ""),
    ]
    choices = {
        (name, averaged): {"method": method, "averaged": averaged}
        for name, method in METHODS.items()
        for averaged in (False, True)
    }
    step = partial(vector_step, starts[0], keys[0], train)
    calls = {
        choice: lambda options=options: jax.block_until_ready(step(**options))
        for choice, options in choices.items()
    }
    times = interleaved(calls, 3 if quick else 7)
    for (name, averaged), options in choices.items():
        found = [
            measured(trained(start, key, **options))
            for start, key in zip(starts, keys, strict=True)
        ]
        how = "dk.ema(0.8)" if averaged else "codebook_loss by Adam"
        speed = median(times[name, averaged])
        rows.append((name, how, *spreads(found, *forms), speed))
    head = (
        "gradient to the encoder",
        "codebook",
        "error, % of variance",
        f"entries used of {BOOK_SIZE}",
        "perplexity",
        "a step",
    )
    title = f"A digit as {CODES} codes of {BOOK_SIZE}, {num_steps} steps on {BATCH}"
    what = f"{len(held_out)} held-out digits, mean and range of {len(keys)} seeds"
    table(f"{title}: {what}", head, rows)


# Influence ---------------------------------------------------------------------------

# Of the soft fit, in squared pixels.
TEMPERATURE = 0.25


@jax.jit
def influence(
    points: jax.Array, start: jax.Array, temperature: float | None = None
) -> jax.Array:
    """How the centroids move with the weight of each point, [k, d, n].

    Source: Koh & Liang 2017 (influence functions), https://arxiv.org/abs/1703.04730
    """

    def centroids(weights: jax.Array) -> jax.Array:
        options = {"weights": weights, "temperature": temperature, "max_steps": 2000}
        return dk.fit(points, start, tol=0.0, **options).centroids

    return jax.jacrev(centroids)(jnp.ones(len(points), points.dtype))


@jax.jit
def removals(
    points: jax.Array,
    centroids: jax.Array,
    rows: jax.Array,
    temperature: float | None = None,
    *,
    amount: Any = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Refits without one of some points each, or with that amount of weight less.

    Returns the moves, [m, k, d], and how many labels changed, [m], that of the point
    itself aside: once it is removed, nothing depends on it.
    """
    labels = dk.assign(points, centroids)
    ones = jnp.ones(len(points), points.dtype)

    def without(row: jax.Array) -> tuple[jax.Array, jax.Array]:
        weights = ones.at[row].add(-amount)
        options = {"weights": weights, "temperature": temperature, "max_steps": 2000}
        fitted = dk.fit(points, centroids, tol=0.0, **options)
        changed = (fitted.labels != labels).at[row].set(False)
        return fitted.centroids - centroids, jnp.sum(changed)

    return lax.map(without, rows)


def relative_errors(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Of each of several moves, [m]."""
    norm = partial(np.linalg.norm, axis=(1, 2))
    return norm(found - true) / norm(true)


def influential(quick: bool) -> None:
    """Item influence: which points a centroid depends on most, and is that so."""
    from timing import table

    with jax.enable_x64(True):
        points, classes = digits(jnp.float64)
        number = 60 if quick else 300
        rows = influence_of("Hard", None, points, classes, number)
        rows += influence_of("Soft", TEMPERATURE, points, classes, number)
    head = "fit", "removals", "number", "correlation", "error, median", "largest"
    title = "The move when a point is removed: minus its influence, against a refit"
    table(title, (*head, "times n / (n − 1)"), rows)
    print(
        "\nError: relative, of all centroids at once. Hard, the mean of n points "
        "moves by (c − x) / (n − 1),\nof which the derivative tells (c − x) / n: "
        "times n / (n − 1) nothing is left, while no label\nchanges. Soft, a label "
        "that changes is no kink."
    )


def influence_of(
    name: str,
    temperature: float | None,
    points: jax.Array,
    classes: np.ndarray,
    number: int,
) -> list[tuple]:
    """Prints the most influential points; returns how well refits are predicted."""
    from timing import table

    key, options = jax.random.key(0), {"temperature": temperature, "tol": 0.0}
    fitted = dk.fit_restarts(key, points, NUM_CLUSTERS, max_steps=2000, **options)
    centroids, labels = fitted.centroids, np.asarray(fitted.labels)
    begin = time.perf_counter()
    moves = np.asarray(influence(points, centroids, temperature))
    took = time.perf_counter() - begin
    predicted = -np.moveaxis(moves, -1, 0)
    lengths = np.linalg.norm(predicted, axis=2)
    j = np.unravel_index(lengths.argmax(), lengths.shape)[1]
    top = np.argsort(-lengths[:, j])[:10]
    others = np.random.default_rng(0).permutation(len(points))[:number]
    rows = np.concatenate([top, np.setdiff1d(others, top)])
    found = removals(points, centroids, jnp.asarray(rows), temperature)
    true, changed = map(np.asarray, found)
    predicted = predicted[rows]
    errors = relative_errors(predicted, true)

    lines = []
    for i, row in enumerate(top):
        distance = np.linalg.norm(points[row] - centroids[j])
        both = (np.linalg.norm(move[i, j]) for move in (predicted, true))
        cells = distance, *both, errors[i]
        texts = map(format, cells, (".2f", ".4f", ".4f", ".1%"))
        lines.append((row, classes[row], *texts, changed[i]))
    head = "point", "digit", "distance", "predicted", "refit", "error", "labels changed"
    digit = np.bincount(classes[labels == j]).argmax()
    what = f"centroid {j}, {float(fitted.counts[j]):.0f} points, mostly {digit}s"
    table(f"{name}: the ten points that move a centroid most ({what})", head, lines)
    certificate = dk.certificate(points, centroids, temperature=temperature)
    typical = np.median(np.linalg.norm(true, axis=2).max(axis=1))
    print(
        f"\ncertificate: valid {bool(certificate.valid)}, smallest eigenvalue "
        f"{float(certificate.smallest_eigenvalue):.1f}; no label changes while all "
        f"centroids move\nby less than {float(certificate.label_radius):.5f} (a "
        f"removal moves one by {typical:.5f}, median). The Jacobian\n{moves.shape} "
        f"took {took:.1f} s, with its compilation."
    )

    counts = np.asarray(fitted.counts)[labels[rows]][:, None, None]
    exact = relative_errors(predicted * counts / (counts - 1), true)
    summary = []
    for what, on in (("that change no label", changed == 0), ("others", changed > 0)):
        if on.any():
            correlation = np.corrcoef(predicted[on].ravel(), true[on].ravel())[0, 1]
            cells = np.median(errors[on]), errors[on].max(), np.median(exact[on])
            texts = map("{:.1e}".format, cells)
            summary.append((name, what, on.sum(), f"{correlation:.5f}", *texts))
    return summary


# -------------------------------------------------------------------------------------


def main() -> None:
    from timing import machine

    items = {"cluster": cluster, "vq": vq, "influence": influential}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("items", nargs="*", metavar="item", help=", ".join(items))
    parser.add_argument("--quick", action="store_true", help="fewer seeds and steps")
    args = parser.parse_args()
    for item in args.items:
        if item not in items:
            parser.error(f"item must be one of {', '.join(items)}, got {item!r}")
    print(machine("jax", "numpy", "scipy", "optax"), flush=True)
    start = time.perf_counter()
    for item in args.items or items:
        begin = time.perf_counter()
        items[item](args.quick)
        print(f"\n({item}: {time.perf_counter() - begin:.0f} s)", flush=True)
    took, load = time.perf_counter() - start, os.getloadavg()[0]
    print(f"\nThe whole took {took:.0f} s; load {load:.1f} after.")


if __name__ == "__main__":
    main()
