"""Arrays for the parameters of both packages, by their names: what is compared."""

from __future__ import annotations

from importlib import resources

import numpy as np

SCALARS = {
    "alpha": 1.6,
    "baseline": 0.3,
    "beta": 0.4,
    "diversity_weight": 0.7,
    "eta": 0.8,
    "gap": 1.5,
    "min_count": 7.0,
    "scale": 0.8,
    "strength": 1.2,
    "tau": 0.7,
    "tau_backward": 0.4,
    "temperature": 0.3,
    "tol": 0.0,
}


def arrays() -> dict[str, np.ndarray]:
    """Arrays by the name of their parameter: 16 of the embedded digits, 8 pixels."""
    with resources.files("diffkm_jax").joinpath("data/digits.npz").open("rb") as file:
        digits = np.load(file)["points"][:16].astype(np.float64)
    rng = np.random.default_rng(0)
    points = digits[:, 18:62:6] / 16
    # Positive, for the divergences, and off the grid, on which there are ties.
    points = points + rng.uniform(0.05, 0.1, points.shape)
    centroids = points[:5] + 0.01
    root = rng.normal(size=(8, 8)) / 3
    logits = -((points[5:9, None] - centroids) ** 2).sum(2).reshape(2, 2, 5) / 0.3
    return {
        **{name: np.asarray(value) for name, value in SCALARS.items()},
        "points": points,
        "centroids": centroids,
        "codebooks": np.stack([centroids, centroids - centroids.mean(0)]),
        "weights": rng.uniform(0.5, 1.5, 16),
        "active": np.array([True, True, False, True, True]),
        "nearest": points[::-1].copy(),
        "x": points[:6],
        "y": points[6:12],
        "precision": root @ root.T,
        "logits": logits,
        "log_odds": logits,
        "params": rng.normal(size=5),
        "rows": logits,
        "costs": rng.normal(size=2),
        "gradient": rng.normal(size=logits.shape),
        "target": rng.normal(size=logits.shape),
        "targets": np.exp(logits) / np.exp(logits).sum(-1, keepdims=True),
        "gumbel": (gumbel := rng.gumbel(size=(12, *logits.shape))),
        "noise": gumbel[0],
        "draws": gumbel[:4],
        "normal": rng.normal(size=points.shape),
        "choices": rng.gumbel(size=(16, 5)),
    }
