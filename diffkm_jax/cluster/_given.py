"""What scikit-learn's methods are given, checked, as NumPy arrays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from jax.core import Tracer
from scipy import sparse
from sklearn.utils.validation import _check_sample_weight, validate_data

from diffkm_jax._by_name import distance_of
from diffkm_jax._checks import as_tree
from diffkm_jax._given import check_domain

# Numbers in a block of rows: 8 MB of float64, which are copied to where JAX has them
# while the block before is at work.
BLOCK = 1 << 20


def as_rows(model: Any, X: Any, *, reset: bool) -> Any:
    """The data checked by scikit-learn: [n, d], float64 or float32, dense or CSR."""
    if isinstance(X, Tracer):
        raise TypeError(
            "X must not be traced, as the estimator is of NumPy: inside jit, grad and "
            "vmap take diffkm_jax.fit, from cluster_centers_"
        )
    return validate_data(
        model,
        X,
        accept_sparse="csr",
        dtype=[np.float64, np.float32],
        order="C",
        accept_large_sparse=False,
        reset=reset,
    )


def as_weights(sample_weight: Any, X: Any) -> np.ndarray | None:
    """The weights, [n], in the dtype of the data; None is ones."""
    if sample_weight is None:
        return None
    weights = _check_sample_weight(sample_weight, X, dtype=X.dtype)
    if (weights < 0).any():
        raise ValueError(
            f"sample_weight must not be negative, got {weights.min()} in row "
            f"{weights.argmin()}"
        )
    if not weights.any():
        raise ValueError("sample_weight must not be zero in every row")
    return weights


def dense(X: Any) -> np.ndarray:
    """All rows, dense."""
    return X.toarray(order="C") if sparse.issparse(X) else X


def in_blocks(X: Any) -> Iterator[tuple[slice, np.ndarray]]:
    """The rows, dense, some at a time: which they are, and they themselves."""
    n, d = X.shape
    size = 1 << max(0, (BLOCK // max(1, d)).bit_length() - 1)
    for start in range(0, n, size):
        rows = slice(start, min(start + size, n))
        yield rows, dense(X[rows])


def padded(rows: np.ndarray) -> np.ndarray:
    """The rows, and copies of the last up to a number that many lengths share.

    Each number of rows is a program of its own, whose compiling takes longer than what
    it does; there are eight between a power of two and the next, four below 64.
    """
    n = len(rows)
    more = -n % (1 << max(0, n.bit_length() - (4 if n > 64 else 3)))
    return rows if more == 0 else np.concatenate([rows, rows[-1:].repeat(more, axis=0)])


def check_rows(
    model: Any, X: np.ndarray, weights: Any = None, init: Any = None
) -> None:
    """Raises ValueError where rows are outside the domain of the distance."""
    tree = as_tree(distance_of(model.distance))
    check_domain(tree, X, weights, init, None, names=("X", "init"))
