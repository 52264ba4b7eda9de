"""Planted defects: ports of a function that go wrong as real ports do.

`DEFECTS` by name: both functions, their arrays, the input that a report must name (""
is the value), and the side at fault where slopes tell it. Where both gradients are the
slopes of their own values, only a reader knows which values are meant: None.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import diffkm_jax as dk
import diffkm_torch as dt

RNG = np.random.default_rng(0)
X, C = RNG.normal(size=(20, 3)), RNG.normal(size=(4, 3))
W, B, A = RNG.uniform(0.5, 2, 20), RNG.normal(size=(2, 3)), RNG.normal(size=(4, 4))
P = {"points": X, "centroids": C, "weights": W}
T = np.float64(0.7)
GRID = RNG.integers(0, 3, (20, 2)).astype(float)
CORNERS = np.array([[0.0, 0], [2, 0], [0, 2], [2, 2]])
TINY = np.where(np.arange(20) % 4 == 1, 1e-9, 1.0)
LABELS = RNG.integers(0, 4, 20)
MASK = RNG.uniform(size=(20, 4)) > 0.3
MASK[:, 0] = True
ORDER = RNG.permutation(20)
V = RNG.normal(size=3)
WITH_ZEROS = np.where(RNG.uniform(size=X.shape) < 0.3, 0.0, X)
WITH_A_ZERO_ROW = np.where(np.arange(20)[:, None] == 3, 0.0, X)

BLAME = "is not the slope", "is not finite where", "values jump"


class Defect(NamedTuple):
    """Two functions that do not agree, and what a report must say of it."""

    jax_fn: Any
    torch_fn: Any
    args: tuple
    leaf: str
    side: str | None = None
    options: Mapping[str, Any] = MappingProxyType({})


class Spoiled(torch.autograd.Function):
    """The identity, with a gradient that is spoiled on its way back."""

    @staticmethod
    def forward(ctx, array, spoil):
        ctx.spoil = spoil
        return array.clone()

    @staticmethod
    def backward(ctx, gradient):
        return ctx.spoil(gradient), None


def spoiled(array, spoil=torch.neg):
    return Spoiled.apply(array, spoil)


def spoiled_in_jax(array, spoil=jnp.negative):
    """The same of JAX."""
    identity = jax.custom_vjp(lambda a: a)
    identity.defvjp(lambda a: (a, None), lambda _, g: (spoil(g),))
    return identity(array)


def ours(p, t):
    return {"loss": dk.soft_kmeans_loss(**p, temperature=t)}


def theirs(p, t):
    return {"loss": dt.soft_kmeans_loss(**p, temperature=t)}


def with_leaf(name, change):
    return lambda p, t: theirs(p | {name: change(p[name])}, t)


def with_leaf_of_jax(name, change):
    return lambda p, t: ours(p | {name: change(p[name])}, t)


def with_nan(gradient):
    gradient = gradient.clone()
    gradient[2, 1] = torch.nan
    return gradient


def one_row_doubled(gradient):
    gradient = gradient.clone()
    gradient[7] *= 2
    return gradient


def last_of_ties(x, c):
    d = ((x[:, None] - c.detach()) ** 2).sum(-1)
    labels = len(c) - 1 - d.flip(1).argmin(1)
    return ((x - c[labels]) ** 2).sum()


def beside(size, module, spoil=lambda b: b):
    """A loss, and a term of another size in an argument of its own."""

    def loss(x, b):
        return module.kmeans_loss(x, x[:4]) + size * (spoil(b) ** 3).sum()

    return loss


def weighted(x, c):
    return dk.kmeans_loss(x, c, weights=jnp.asarray(TINY, x.dtype))


def tiny_rows_spoiled(x, c):
    is_tiny = torch.tensor(TINY < 0.5)[:, None]
    x = spoiled(x, lambda g: torch.where(is_tiny, -g, g))
    return dt.kmeans_loss(x, c, weights=torch.tensor(TINY, dtype=x.dtype))


def mixed(x, a):
    return ((x @ a) ** 3).sum()


FIRST = {
    "a wrong sign": Defect(
        ours, with_leaf("centroids", spoiled), (P, T), "arg0['centroids']", "torch"
    ),
    "a missing path": Defect(
        ours,
        with_leaf("centroids", lambda c: c.detach()),
        (P, T),
        "arg0['centroids']",
        "torch",
    ),
    "tau inverted": Defect(ours, lambda p, t: theirs(p, 1 / t), (P, T), "arg1"),
    "a factor 1/n": Defect(
        ours,
        with_leaf("points", lambda x: spoiled(x, lambda g: g / 20)),
        (P, T),
        "arg0['points']",
        "torch",
    ),
    "the last of ties": Defect(dk.kmeans_loss, last_of_ties, (GRID, CORNERS), "arg0"),
    "a float32 downcast": Defect(
        ours,
        with_leaf("points", lambda x: x.float().to(x.dtype)),
        (P, T),
        "arg0['points']",
        "torch",
    ),
    "a bfloat16 gradient": Defect(
        ours,
        with_leaf("points", lambda x: spoiled(x, lambda g: g.bfloat16().to(g.dtype))),
        (P, T),
        "arg0['points']",
        "torch",
    ),
    "a transposed leaf": Defect(
        mixed,
        lambda x, a: mixed(x, spoiled(a, lambda g: g.T)),
        (X[:, :1] + A[:1], A),
        "arg1",
        "torch",
    ),
    "the wrong leaf at zero": Defect(
        ours,
        with_leaf("weights", lambda w: spoiled(w, torch.zeros_like)),
        (P, T),
        "arg0['weights']",
        "torch",
    ),
    "a NaN in one entry": Defect(
        ours,
        with_leaf("points", lambda x: spoiled(x, with_nan)),
        (P, T),
        "arg0['points']",
        "torch",
    ),
    "a sign in a leaf of 1e-8": Defect(
        beside(1e-8, dk), beside(1e-8, dt, spoiled), (X, B), "arg1", "torch"
    ),
    # A term of 1e-12 is about the rounding of the slope of the whole.
    "a sign in a leaf of 1e-12": Defect(
        beside(1e-12, dk), beside(1e-12, dt, spoiled), (X, B), "arg1"
    ),
    "a sign in rows of weight 1e-9": Defect(
        weighted, tiny_rows_spoiled, (X, C), "arg0", "torch"
    ),
    "a sign in an output of 1e-12": Defect(
        lambda x, c: (dk.kmeans_loss(x, c), 1e-12 * jnp.sin(c).sum(0)),
        lambda x, c: (dt.kmeans_loss(x, c), 1e-12 * spoiled(c).sin().sum(0)),
        (X, C),
        "arg1",
        "torch",
    ),
}


# Values that are not those of the other side ------------------------------------------


def standardized(x):
    return (x - x.mean(0, keepdims=True)) / (x.var(0, keepdims=True) + 1e-5) ** 0.5


def root_and_eps(x):
    deviation = x.var(0, correction=0, keepdims=True) ** 0.5
    return (x - x.mean(0, keepdims=True)) / (deviation + 1e-5)


def attention_in_jax(x, c, t):
    logits = jnp.where(jnp.asarray(MASK), x @ c.T / t, -jnp.inf)
    return jax.nn.softmax(logits) @ c


def masked_too_late(x, c, t):
    return torch.where(torch.tensor(MASK), F.softmax(x @ c.T / t, -1), 0.0) @ c


def sums_in_jax(x):
    return jnp.zeros((4, 3), x.dtype).at[jnp.asarray(LABELS)].add(x**2)


def sums_that_lose_duplicates(x):
    return torch.zeros(4, 3, dtype=x.dtype).index_put(
        (torch.tensor(LABELS),), x**2, accumulate=False
    )


def batch_norm_in_jax(params, x):
    mean, var = x.mean(0, keepdims=True), x.var(0, keepdims=True)
    x = (x - mean) / jnp.sqrt(var + 1e-5)
    return x * params["weight"][None] + params["bias"][None]


NORM = {"weight": W[:3], "bias": B[0]}
VALUES = {
    "a mean for a sum": Defect(
        lambda x: (x**2).sum(0), lambda x: (x**2).mean(0), (X,), "arg0"
    ),
    "an unbiased variance": Defect(
        lambda x: x.var(0), lambda x: x.var(0), (X,), "arg0"
    ),
    "an eps outside the root": Defect(standardized, root_and_eps, (X,), "arg0"),
    "a softmax over the wrong axis": Defect(
        lambda x, c: jax.nn.softmax(x @ c.T),
        lambda x, c: F.softmax(x @ c.T, 0),
        (X, C),
        "arg0",
    ),
    "a log_softmax of probabilities": Defect(
        lambda x, c: jax.nn.log_softmax(x @ c.T)[:, 0].mean(),
        lambda x, c: F.log_softmax(F.softmax(x @ c.T, -1), -1)[:, 0].mean(),
        (X, C),
        "arg1",
    ),
    "a broadcast along the wrong axis": Defect(
        lambda a, b: jnp.tanh(a + b[:, None]),
        lambda a, b: torch.tanh(a + b),
        (A, A[0]),
        "arg1",
    ),
    "a mask after the softmax": Defect(
        attention_in_jax, masked_too_late, (X, C, T), "arg2"
    ),
    "an off-by-one slice": Defect(
        lambda x: (x[1:] * x[:-1]).sum(0),
        lambda x: (x[2:] * x[:-2]).sum(0),
        (X,),
        "arg0",
    ),
    "a temperature that multiplies in one term": Defect(
        lambda x, c, t: (-t * jax.nn.logsumexp(-(x @ c.T) / t, -1)).sum(),
        lambda x, c, t: (-t * torch.logsumexp(-(x @ c.T) * t, -1)).sum(),
        (X, C, T),
        "arg2",
    ),
    "an integer division": Defect(
        lambda x: (x[:7] ** 2).sum(0) / (len(x[:7]) / 2),
        lambda x: (x[:7] ** 2).sum(0) / (len(x[:7]) // 2),
        (X,),
        "arg0",
    ),
    "a constant of float32": Defect(
        lambda x: 0.1 * x**2,
        lambda x: torch.tensor(0.1, dtype=torch.float32).to(x.dtype) * x**2,
        (X,),
        "arg0",
        None,
        {"dtypes": ["float64"]},
    ),
    "the other GELU": Defect(jax.nn.gelu, F.gelu, (X,), "arg0"),
    "a scatter that loses duplicates": Defect(
        sums_in_jax, sums_that_lose_duplicates, (X,), ""
    ),
    "a transposed weight": Defect(
        lambda p, x: x @ p["weight"],
        nn.Linear(4, 4, bias=False),
        (A,),
        "weight",
        None,
        {"params": {"weight": A}},
    ),
    "another momentum of BatchNorm": Defect(
        lambda x, m: 0.9 * m + 0.1 * x.mean(0),
        lambda x, m: 0.1 * m + 0.9 * x.mean(0),
        (X, B[0]),
        "arg1",
    ),
    "another eps of BatchNorm": Defect(
        batch_norm_in_jax,
        nn.BatchNorm1d(3, eps=1e-3),
        (X,),
        "weight",
        None,
        {"params": NORM},
    ),
}


# Values that are right, and gradients that are not ------------------------------------


class Half(torch.autograd.Function):
    """½ ‖x‖² whose gradient by hand is 2 x."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return 0.5 * (x**2).sum()

    @staticmethod
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0]


class Permuted(torch.autograd.Function):
    """x[ORDER] whose gradient by hand is permuted by ORDER, not back."""

    @staticmethod
    def forward(ctx, x):
        return x[ORDER]

    @staticmethod
    def backward(ctx, g):
        return g[ORDER]


class BackwardOnly(torch.autograd.Function):
    """The sine, right in reverse mode alone."""

    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()

    @staticmethod
    def jvp(ctx, t):
        return -t * ctx.saved_tensors[0].cos()


def backward_only_in_jax(x):
    sine = jax.custom_jvp(jnp.sin)
    # Linear in the tangent, with a transpose that is right.
    sine.defjvp(lambda x, t: (jnp.sin(x[0]), 0.5 * t[0] * jnp.cos(x[0])))
    return sine(x)


def stale(x, m):
    """A moving average whose update is written in place, out of the graph's sight."""
    average = 0.9 * m
    average.data += 0.1 * x.mean(0)
    return average + 0 * x.sum()


def unit(x):
    return x / jnp.sqrt((x**2).sum(-1, keepdims=True))


def unit_detached(x):
    return x / (x**2).sum(-1, keepdim=True).sqrt().detach()


def norms_in_jax(x):
    squares = (x**2).sum(-1)
    is_zero = squares == 0
    return jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, squares)))


def norms(x):
    squares = (x**2).sum(-1)
    is_zero = squares == 0
    return torch.where(is_zero, 0.0, torch.where(is_zero, 1.0, squares).sqrt())


def norms_with_nan(x):
    squares = (x**2).sum(-1)
    return torch.where(squares == 0, 0.0, squares.sqrt())


def norms_with_nan_in_jax(x):
    squares = (x**2).sum(-1)
    return jnp.where(squares == 0, 0.0, jnp.sqrt(squares))


def clipped(x, bound):
    """With a gradient that a forgotten hook clips."""
    x = x * 1
    if x.requires_grad:
        x.register_hook(lambda g: g.clamp(-bound, bound))
    return x


class Network(nn.Module):
    """Two layers, the bias of the second of which is used as a constant."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x):
        hidden = torch.tanh(self.first(x))
        return F.linear(hidden, self.second.weight, self.second.bias.detach())


def network(params, x, change=lambda a: a):
    first, second = params["first"], params["second"]
    hidden = jnp.tanh(x @ first["kernel"] + first["bias"][None])
    return hidden @ change(second["kernel"]) + second["bias"][None]


class RightNetwork(Network):
    """The same without the defect."""

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


LAYERS = {
    "first": {"kernel": RNG.normal(size=(3, 5)), "bias": RNG.normal(size=5)},
    "second": {"kernel": RNG.normal(size=(5, 2)), "bias": RNG.normal(size=2)},
}


def cube(x, t):
    return (x**3).sum() * t


def cut(gradient):
    """The gradient of a gradient ends here."""
    return gradient.detach() if gradient.requires_grad else gradient


GRADIENTS = {
    "a forgotten 1/2": Defect(
        lambda x: 0.5 * (x**2).sum(), Half.apply, (X,), "arg0", "torch"
    ),
    "a detached normalizer": Defect(unit, unit_detached, (X,), "arg0", "torch"),
    "a gradient that is clipped": Defect(
        lambda x: (x**3).sum(),
        lambda x: (clipped(x, 2.0) ** 3).sum(),
        (X,),
        "arg0",
        "torch",
    ),
    "a clamp at its bound": Defect(
        lambda x: jnp.maximum(x, 0.0) * 2,
        lambda x: torch.clamp(x, min=0.0) * 2,
        (WITH_ZEROS,),
        "arg0",
    ),
    "a stale update in place": Defect(
        lambda x, m: 0.9 * m + 0.1 * x.mean(0), stale, (X, B[0]), "arg0", "torch"
    ),
    "a gradient that is right but for one row": Defect(
        ours,
        with_leaf("points", lambda x: spoiled(x, one_row_doubled)),
        (P, T),
        "arg0['points']",
        "torch",
    ),
    "a relative error of 1e-6": Defect(
        ours,
        with_leaf("points", lambda x: spoiled(x, lambda g: g * (1 + 1e-6))),
        (P, T),
        "arg0['points']",
        "torch",
    ),
    "a relative error of 1e-8": Defect(
        ours,
        with_leaf("centroids", lambda c: spoiled(c, lambda g: g * (1 + 1e-8))),
        (P, T),
        "arg0['centroids']",
        "torch",
    ),
    "a permutation that is not undone": Defect(
        lambda x: x[jnp.asarray(ORDER)] ** 3,
        lambda x: Permuted.apply(x) ** 3,
        (X,),
        "arg0",
        "torch",
    ),
    "a mean over what was broadcast": Defect(
        lambda x, v: jnp.tanh(x * v[None]),
        lambda x, v: torch.tanh(x * spoiled(v, lambda g: g / len(x))),
        (X, V),
        "arg1",
        "torch",
    ),
    "a float16 in between": Defect(
        lambda x, c: jax.nn.logsumexp(x @ c.T, -1),
        lambda x, c: torch.logsumexp((x @ c.T).half().to(x.dtype), -1),
        (X, C),
        "arg0",
        "torch",
    ),
    "a second derivative alone": Defect(
        cube,
        lambda x, t: cube(spoiled(x, cut), t),
        (X, T),
        "arg0",
        "torch",
        {"order": 2},
    ),
    "a forward mode alone": Defect(
        jnp.sin, BackwardOnly.apply, (X,), "arg0", "torch", {"forward": True}
    ),
    "a bias that is a constant in one layer": Defect(
        network, Network(), (X,), "second.bias", "torch", {"params": LAYERS}
    ),
    "a NaN behind a guard": Defect(
        norms_in_jax, norms_with_nan, (WITH_A_ZERO_ROW,), "arg0", "torch"
    ),
}


# The same on the JAX side -------------------------------------------------------------

IN_JAX = {
    "a wrong sign in JAX": Defect(
        with_leaf_of_jax("centroids", spoiled_in_jax),
        theirs,
        (P, T),
        "arg0['centroids']",
        "jax",
    ),
    "a missing path in JAX": Defect(
        with_leaf_of_jax("points", jax.lax.stop_gradient),
        theirs,
        (P, T),
        "arg0['points']",
        "jax",
    ),
    "a factor 1/n in JAX": Defect(
        with_leaf_of_jax("weights", lambda w: spoiled_in_jax(w, lambda g: g / 20)),
        theirs,
        (P, T),
        "arg0['weights']",
        "jax",
    ),
    "a bfloat16 in between in JAX": Defect(
        lambda x, c: jax.nn.logsumexp((x @ c.T).astype(jnp.bfloat16).astype(x.dtype)),
        lambda x, c: torch.logsumexp((x @ c.T).flatten(), 0),
        (X, C),
        "arg0",
        "jax",
    ),
    "a NaN behind a guard in JAX": Defect(
        norms_with_nan_in_jax, norms, (WITH_A_ZERO_ROW,), "arg0", "jax"
    ),
    "a wrong custom_jvp": Defect(
        backward_only_in_jax, torch.sin, (X,), "arg0", "jax", {"forward": True}
    ),
    "a second derivative alone in JAX": Defect(
        lambda x, t: cube(spoiled_in_jax(x, jax.lax.stop_gradient), t),
        cube,
        (X, T),
        "arg0",
        "jax",
        {"order": 2},
    ),
    "a kernel that is a constant in one layer": Defect(
        lambda p, x: network(p, x, jax.lax.stop_gradient),
        RightNetwork(),
        (X,),
        "second.weight",
        "jax",
        {"params": LAYERS},
    ),
}
DEFECTS = FIRST | VALUES | GRADIENTS | IN_JAX


def check_named(report, defect):
    """Raises unless a report of a defect names its leaf, and the side at fault."""
    bad = [pair for pair in report.disagreements if pair.input == defect.leaf]
    assert bad, f"{defect.leaf} is not named:\n{report}"
    assert all(pair.name in str(report) for pair in bad)
    notes = "; ".join(pair.note for pair in bad)
    for side in ("jax", "torch"):
        is_blamed = any(f"{side}'s {what}" in notes for what in BLAME)
        if defect.side is None:
            # What is right is in JAX.
            assert side == "torch" or not is_blamed, notes
        else:
            assert is_blamed == (side == defect.side), notes
