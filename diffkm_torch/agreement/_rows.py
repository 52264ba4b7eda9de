"""Arrays as rows, and what differs between two of them; NaN and infinities apart."""

from __future__ import annotations

import numpy as np


def as_rows(array: np.ndarray) -> np.ndarray:
    """The array in float64 as [rows, entries]: of one axis, each entry is a row."""
    array = np.asarray(array, np.float64)
    if array.size == 0:
        return np.zeros((0, 1))
    return array.reshape(-1, array.shape[-1] if array.ndim > 1 else 1)


def row_max(rows: np.ndarray) -> np.ndarray:
    """The largest finite entry of each row, without its sign."""
    finite = np.where(np.isfinite(rows), np.abs(rows), 0)
    return finite.max(axis=1, initial=0)


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The difference, 0 where one of the two is not finite."""
    finite = np.isfinite(a) & np.isfinite(b)
    return np.subtract(a, b, out=np.zeros_like(a), where=finite)


def non_finite_differ(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The entries where one is finite and one is not, or both are not and differ."""
    is_lone = np.isfinite(a) != np.isfinite(b)
    return is_lone | (~np.isfinite(a) & (np.nan_to_num(a) != np.nan_to_num(b)))
