"""What is tried: every public function as a function of arrays, with such arrays.

Mirrored functions are called as `diffkm_torch._calls` calls them; the others here. The
arrays are small and shared, and so are the programs; points lie in three groups, far
from ties. What a derivative may refuse is read in the table of docs/promises.md.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

import diffkm_jax as dk
import diffkm_torch as dt
from diffkm_torch import _calls, _parity
from tests.promises import promises

es = dk.estimators
KEY = jax.random.key(0)
PROMISES = dict(promises())
# Classes: what returns them, or takes them, is tried.
CLASSES = {
    "Certificate": "certificate",
    "FitResult": "fit",
    "StreamResult": "fit",
    # No functions of arrays alone.
    "fit_specs": "fit",
    "fit_stream": "fit",
    "load": "init",
    "save": "init",
    "tune": "estimators.rebar",
    "LookupFreeQuantized": "lookup_free_quantize",
    "Quantized": "quantize",
    "finite_scalar_values": "finite_scalar_quantize",
    "lookup_free_values": "lookup_free_quantize",
    "ScalarQuantized": "finite_scalar_quantize",
    "Report": "evaluate",
    "State": "init",
    "Statistics": "statistics",
    "Status": "fit",
    "estimators.Estimator": "estimators.Estimator",
}
# Values that are no differentiable function of the arrays, though their gradient is
# exact: of a soft stand-in, of arrays held constant, or zero by request.
NO_DIFFERENCES = {
    "diveq",
    "perturbed_argmax",
    "perturbed_argmax(size=2)",
    "conditional_gumbel(differentiable=False)",
    "fit(derivative=none)",
    "fit_minibatch",
}
# Results in the dtype of the input are rounded to it before others are made of them.
FITS = "fit", "fit_bounded", "fit_minibatch", "fit_restarts", "fit_sharded"
ROUNDED_INSIDE = {*FITS, "certificate", "assigned_loss"}
STEPS = {*FITS, "update", "newton", "macqueen", "ema"}
MAX_STEPS = 25


@dataclass(frozen=True, eq=False)
class Subject:
    """A public function, called in one way.

    Attributes:
        name: As in that table: `fit(derivative=one_step)`.
        function: Of arrays by keyword, to a tree.
        arrays: Its arguments, float64, bool or integer.
        smooth: What of the tree a derivative is of; all that is floating, by default.
        sharded: Whether it has an `axis_name` and with it the same result.
    """

    name: str
    function: Callable[..., Any]
    arrays: dict[str, np.ndarray]
    smooth: Callable[[Any], Any] = lambda tree: tree
    sharded: bool = False

    @property
    def base(self) -> str:
        return self.name.partition("(")[0]

    @property
    def promised(self) -> list[str] | None:
        """The row of the table: meaning, grad, jvp, second order, vmap."""
        return PROMISES.get(self.name) or PROMISES.get(self.base)

    @property
    def forward_mode(self) -> bool:
        return self.promised is not None and self.promised[2] == "yes"

    @property
    def differences(self) -> bool:
        """Whether differences of the value are what the gradient should be."""
        if self.promised is None or not self.forward_mode:
            return False
        return self.promised[0] != "zero" and self.name not in NO_DIFFERENCES

    @property
    def held(self) -> set[str]:
        """Arguments whose derivative is zero by declaration: the start of a fit."""
        moves = self.base not in FITS or "unrolled" in self.name
        return set() if moves else {"centroids"}

    @property
    def rounded_inside(self) -> bool:
        return self.base in ROUNDED_INSIDE or self.of_cost

    @property
    def of_cost(self) -> bool:
        """Whether it evaluates a cost, which rounds in the dtype of its rows."""
        return self.base.startswith("estimators.") or self.base == "evaluate"

    def factor(self, dtype: str) -> int:
        """How much more rounding there is: of many passes, or in half precision.

        There of a cost, and of the loss at centroids that do not rest.
        """
        if dtype in ("float32", "float64"):
            return 50 if self.base in STEPS else 1
        return 3 if self.of_cost or self.base == "fit_minibatch" else 1

    @property
    def stays(self) -> Subject | None:
        """The same fit without a step, if its derivative is that where it rests."""
        if self.base != "fit" or "unrolled" in self.name:
            return None
        return replace(self, function=partial(self.function, max_steps=0))


def arrays() -> dict[str, np.ndarray]:
    """Arrays by the name of their parameter; those of `_calls`, but small."""
    rng = np.random.default_rng(0)
    groups = np.array([[1.0, 1.0], [3.0, 1.5], [1.5, 4.0]])
    points = groups[np.arange(12) % 3] + rng.uniform(-0.4, 0.4, (12, 2))
    centroids = np.array([[1.2, 0.9], [3.2, 1.6], [2.0, 2.0], [1.4, 3.7]])
    logits = rng.normal(size=(2, 2, 3))
    gumbel = rng.gumbel(size=(12, 2, 2, 3))
    root = rng.normal(size=(2, 2))
    scalars = {name: np.asarray(value) for name, value in _calls.SCALARS.items()}
    return scalars | {
        "points": points,
        "centroids": centroids,
        # Far from ties in the second stage, or group, too.
        "codebooks": np.stack([centroids, 9 * (centroids - centroids[0])]),
        "weights": rng.uniform(0.5, 1.5, 12),
        "active": np.array([True, True, False, True]),
        "nearest": points[::-1] + 0.1,
        "x": points[:6],
        "y": points[6:] + 0.2,
        "precision": root @ root.T + np.eye(2),
        "logits": logits,
        "log_odds": logits,
        "params": rng.normal(size=3),
        "rows": logits,
        "costs": rng.normal(size=2),
        "gradient": rng.normal(size=logits.shape),
        "target": rng.normal(size=logits.shape),
        "targets": np.exp(logits) / np.exp(logits).sum(-1, keepdims=True),
        "gumbel": gumbel,
        "noise": gumbel[0],
        "draws": gumbel[:4],
        "normal": rng.normal(size=points.shape),
        "choices": rng.gumbel(size=(12, 4)),
    }


def _fit(function: Callable, max_steps: int = MAX_STEPS, **kwargs: Any) -> dk.FitResult:
    # How many steps are taken to rest "to rounding" depends on the dtype.
    found = function(**kwargs, max_steps=max_steps)
    state = found.state._replace(step=None)
    return found._replace(num_steps=None, state=state, history=found.history[:2])


def _at_rest(result: Any) -> tuple:
    """What of a fit has a gradient: `residual` and `history` have none."""
    return result.centroids, result.loss, result.counts


def _update(function: Callable, points: Any, centroids: Any, **kwargs: Any) -> Any:
    optimizer = dk.newton()
    if "min_count" in kwargs:
        optimizer = dk.macqueen()
        kwargs["index"] = jnp.array([7, 2, 0, 9, 4])
    state = dk.init(centroids, optimizer=optimizer)
    return function(points, state, optimizer=optimizer, **kwargs)


def cost(rows: jax.Array) -> jax.Array:
    """A cost of two problems [2, 2, 3], not linear."""
    weight = jnp.broadcast_to(jnp.asarray([1.0, -2.0, 3.0], rows.dtype), rows.shape)
    return (jnp.sum(rows * weight, axis=-1) ** 2).sum(-1)


def _own_rule(f: Callable, logits: Any, noise: Any, *, scale: Any) -> Any:
    rows = dk.softmax(logits + noise[0].astype(logits.dtype))
    return f(rows * scale.astype(rows.dtype))


def _own_estimator(logits: Any, noise: Any, scale: Any) -> Any:
    return es.Estimator("own", _own_rule, {"scale": scale}).expect(
        cost, logits, noise[None]
    )


def _evaluate(logits: Any, tau: Any) -> dk.Report:
    # Enumerated: nothing is drawn, and so nothing depends on the dtype of a draw.
    record = es.sampled_straight_through(tau=tau)
    return dk.evaluate(KEY, cost, logits, record)._replace(label=None)


def _is_discrete(logits: Any, tau: Any) -> Any:
    return dk.is_discrete(
        KEY, cost, logits, es.sampled_straight_through(tau=tau), num_samples=2
    )


def _minibatch(points: Any, centroids: Any, weights: Any) -> Any:
    found = dk.fit_minibatch(
        KEY, points, centroids, num_steps=5, batch_size=8, weights=weights
    )
    # The residual of centroids that do not rest is that of their rounding.
    return found._replace(history=found.history[:2], residual=None)


def _restarts(points: Any, weights: Any, **options: Any) -> Any:
    return _fit(
        partial(dk.fit_restarts, KEY, k=3, num_restarts=2, tol=0.0, **options),
        points=points,
        weights=weights,
    )


def _start(initializer: Callable) -> Callable:
    def draw(points: Any, weights: Any, **options: Any) -> Any:
        return initializer(KEY, points, 3, weights=weights, **options)

    return draw


def _sharded(points: Any, centroids: Any, weights: Any) -> Any:
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    fit = partial(dk.fit_sharded, mesh=mesh, tol=0.0)
    return _fit(fit, points=points, centroids=centroids, weights=weights)


# Without a twin in torch: function, and the names of its arrays.
OTHERS: dict[str, tuple[Callable, tuple[str, ...]]] = {
    "certificate": (dk.certificate, ("points", "centroids", "weights", "active")),
    "certificate(temperature=0.3)": (
        dk.certificate,
        ("points", "centroids", "weights", "temperature"),
    ),
    "evaluate": (_evaluate, ("logits", "tau")),
    "is_discrete": (_is_discrete, ("logits", "tau")),
    "fit_minibatch": (_minibatch, ("points", "centroids", "weights")),
    "fit_restarts": (_restarts, ("points", "weights")),
    "fit_sharded": (_sharded, ("points", "centroids", "weights")),
    "kmeans_parallel": (_start(dk.kmeans_parallel), ("points", "weights")),
    "kmeans_plus_plus": (_start(dk.kmeans_plus_plus), ("points", "weights")),
    "random_points": (_start(dk.random_points), ("points", "weights")),
    "estimators.Estimator": (_own_estimator, ("logits", "noise", "scale")),
}
# Called otherwise than in `_calls`, to see all that is returned.
WHOLE = {"fit": _fit, "update": _update}
SMOOTH = {
    "fit": _at_rest,
    "fit_bounded": lambda found: [found[k] for k in ("centroids", "loss", "counts")],
    "fit_minibatch": _at_rest,
    "fit_restarts": _at_rest,
    "fit_sharded": _at_rest,
    # The losses hold points or centroids constant, on purpose.
    "diveq": lambda quantized: quantized.values,
    "nsvq": lambda quantized: quantized.values,
    "update": lambda pair: (pair[0].centroids, *pair[1]),
}


def names() -> list[str]:
    """The public names of `diffkm_jax`, by introspection: softmax, estimators.rloo."""
    return [
        *(name for name in dk.__all__ if name != "estimators"),
        *(f"estimators.{name}" for name in es.__all__),
    ]


def subjects() -> list[Subject]:
    """All of them: each mirrored function in every variant, then the others."""
    data, found = arrays(), []
    for name in _parity.mirrored():
        for variant in _calls.variants(name):
            options = {k: v for k, v in variant.items() if not isinstance(v, float)}
            label = ", ".join(f"{key}={value}" for key, value in variant.items())
            function = _calls.call(dk, name, variant)
            if name in WHOLE:
                function = partial(WHOLE[name], getattr(dk, name), **options)
            given = _calls.arguments(name, variant, data)
            found.append(
                _subject(f"{name}({label})" if label else name, function, given)
            )
    for name, (function, wanted) in OTHERS.items():
        found.append(_subject(name, function, {key: data[key] for key in wanted}))
    return found


def _subject(name: str, function: Callable, given: dict) -> Subject:
    base = name.partition("(")[0]
    public = getattr(dk, base, None)
    sharded = public is not None and "axis_name" in inspect.signature(public).parameters
    # Its batches are other ones there.
    sharded &= base != "fit_minibatch"
    smooth = SMOOTH.get(base, lambda tree: tree)
    return Subject(name, function, given, smooth, sharded)


def twins() -> list[tuple[str, Callable, Callable, dict[str, np.ndarray]]]:
    """Mirrored functions: their names, JAX's, torch's, and their arrays."""
    data, found = arrays(), []
    for name in _parity.mirrored():
        for variant in _calls.variants(name):
            label = ", ".join(f"{key}={value}" for key, value in variant.items())
            pair = [_calls.call(module, name, variant) for module in (dk, dt)]
            if name == "fit":
                pair = [partial(function, max_steps=MAX_STEPS) for function in pair]
            given = _calls.arguments(name, variant, data)
            found.append((f"{name}({label})" if label else name, *pair, given))
    return found
