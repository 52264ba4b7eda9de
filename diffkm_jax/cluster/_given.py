"""What scikit-learn's methods are given, checked, as NumPy arrays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.utils.validation import _check_sample_weight, validate_data

from diffkm_jax._by_name import distance_of
from diffkm_jax._checks import as_tree
from diffkm_jax._given import check_domain

# Numbers in a block of rows that a sparse matrix is made dense in: 32 MB of float64.
BLOCK = 1 << 22


def as_rows(model: Any, X: Any, *, reset: bool) -> Any:
    """The data checked by scikit-learn: [n, d], float64 or float32, dense or CSR."""
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
    """The rows, dense: all at once, or those of a sparse matrix block by block."""
    n, d = X.shape
    size = max(1, BLOCK // max(1, d)) if sparse.issparse(X) else n
    for start in range(0, n, size):
        rows = slice(start, start + size)
        yield rows, dense(X[rows])


def check_rows(
    model: Any, X: np.ndarray, weights: Any = None, init: Any = None
) -> None:
    """Raises ValueError where rows are outside the domain of the distance."""
    tree = as_tree(distance_of(model.distance))
    check_domain(tree, X, weights, init, None, names=("X", "init"))
