"""Extremes in what only the torch package has: layers, `sgd`, the bridge, agreement.

A layer is its function. What a batch of numbers that are not finite leaves in a layer's
buffers harms no later batch, or is told. A planted error is never agreement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

import diffkm_jax as dk
import diffkm_torch as dt
from diffkm_torch import agreement, bridge
from tests.campaign._cells import Cell
from tests.campaign._subjects import arrays

SPECIAL = 0.0, -0.0, 1e-40, 1e-38, 1e-18, 1e18, 1e38, np.inf, -np.inf, np.nan
NAMES = {
    *(name for name in dt.__all__ if not hasattr(dk, name)),
    *agreement.__all__,
    *bridge.__all__,
}
TRIED = {
    "KMeansLoss",
    "VectorQuantizer",
    "sgd",
    "jax_to_torch",
    "torch_to_jax",
    "assert_gradients_agree",
    "compare_gradients",
    "compare_steps",
    # What the last three return.
    "Pair",
    "Parting",
    "Report",
    "Step",
    "StepsReport",
}


def data(value: float, where: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Points with a value in all of them or in one, and centroids, in float32."""
    given = {k: np.asarray(a, np.float32) for k, a in arrays().items()}
    points = given["points"].copy()
    points[(...,) if where == "all" else (0, 0)] = value
    return torch.tensor(points), torch.tensor(given["centroids"])


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def loss_layer(value: float, where: str) -> None:
    x, c = data(value, where)
    for temperature in (None, 0.3):
        layer = dt.KMeansLoss(c, temperature=temperature)
        c_ = c.clone().requires_grad_()
        options = {} if temperature is None else {"temperature": temperature}
        function = dt.kmeans_loss if temperature is None else dt.soft_kmeans_loss
        losses = layer(x), function(x, c_, **options)
        for loss in losses:
            loss.backward()
        same(*losses)
        same(layer.centroids.grad, c_.grad)


def quantizer(value: float, where: str) -> None:
    """A good batch after an extreme one is quantized as its centroids say."""
    x, c = data(value, where)
    layer = dt.VectorQuantizer(c, decay=0.5)
    layer(x)
    good, _ = data(1.0, "one")
    out = layer(good)
    assert torch.isfinite(out.values).all(), "values of a later batch are not finite"
    assert torch.isfinite(layer.centroids).all(), "centroids are not finite"
    if np.isfinite(value) and abs(value) < 1e18:
        assert len(out.labels.unique()) > 1, "all points have one code"


def gradient_descent(value: float, where: str) -> None:
    x, c = data(value, where)
    found = dt.fit(x, c, optimizer=dt.sgd(0.01), max_steps=20)
    status = found.flags
    finite = bool(torch.isfinite(found.loss) & torch.isfinite(found.centroids).all())
    assert finite or dt.Status.CONVERGED not in status, status


def bridged(value: float, where: str) -> None:
    x, c = data(value, where)
    loss = bridge.jax_to_torch(dk.kmeans_loss)
    x_, c_ = x.clone().requires_grad_(), c.clone().requires_grad_()
    total = loss(x_, c_)
    found = total, *torch.autograd.grad(total, (x_, c_))
    program = jax.jit(jax.value_and_grad(dk.kmeans_loss, (0, 1)))
    value_, grads = program(jnp.asarray(x.numpy()), jnp.asarray(c.numpy()))
    for a, b in zip(found, (value_, *grads), strict=True):
        same(a.detach(), torch.tensor(np.asarray(b)))


def bridged_to_jax(value: float, where: str) -> None:
    x, c = data(value, where)
    program = jax.jit(jax.value_and_grad(bridge.torch_to_jax(dt.kmeans_loss), (0, 1)))
    value_, grads = program(jnp.asarray(x.numpy()), jnp.asarray(c.numpy()))
    x_, c_ = x.clone().requires_grad_(), c.clone().requires_grad_()
    total = dt.kmeans_loss(x_, c_)
    found = total, *torch.autograd.grad(total, (x_, c_))
    for a, b in zip(found, (value_, *grads), strict=True):
        same(a.detach(), torch.tensor(np.asarray(b)))


def planted(value: float, where: str) -> None:
    """A twin that is 0.1 % off never passes: it disagrees, or nothing was judged."""
    x, c = (t.double().numpy() for t in data(value, where))

    def wrong(points: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
        return 1.001 * dt.kmeans_loss(points, centroids)

    twins = dk.kmeans_loss, wrong
    report = agreement.compare_gradients(*twins, x, c, dtypes=["float64"])
    verdicts = {pair.verdict for pair in report.pairs}
    assert verdicts != {"agree"}, f"{len(report.pairs)} pairs agree"


def planted_step(value: float, where: str) -> None:
    """A learning rate that is 0.1 % off never passes, or nothing was judged."""
    x, c = (t.double().numpy() for t in data(value, where))
    try:
        report = agreement.compare_steps(
            lambda params, points: dk.kmeans_loss(points, params["c"]),
            lambda module, points: dt.kmeans_loss(points, module["c"]),
            {"c": c},
            torch.nn.ParameterDict({"c": torch.zeros(c.shape)}),
            [x] * 2,
            optimizers=(optax.sgd(1e-3), partial(torch.optim.SGD, lr=1.001e-3)),
            dtypes=["float64"],
        )
    except ValueError as error:
        if not str(error).startswith(("batches", "params", "jax_loss", "torch_loss")):
            raise
    else:
        assert not report.agree, str(report)


def torch_cells() -> Iterator[Cell]:
    """Each of them, at each value."""
    checks: dict[str, Callable[[float, str], None]] = {
        "KMeansLoss": loss_layer,
        "VectorQuantizer": quantizer,
        "sgd": gradient_descent,
        "jax_to_torch": bridged,
        "torch_to_jax": bridged_to_jax,
        "compare_gradients": planted,
        "compare_steps": planted_step,
    }
    for name, check in checks.items():
        for value in SPECIAL:
            for where in ("all", "one"):
                run = partial(check, value, where)
                yield Cell("extremes", "torch only", f"{name} {where} {value:g}", run)
