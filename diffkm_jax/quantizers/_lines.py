"""What quantized points say of their codebook in five lines."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffkm_jax._printed import known, lines_of, number, shape, span


def lines_of_quantized(found: Any) -> str:
    """The lines of a `Quantized`."""
    return lines_of(found, _rows(found))


def _rows(found: Any) -> list[tuple[str, str]] | None:
    """The rows; None of what is traced, mapped over, or no numbers at all."""
    arrays = known(found.codebook_loss, found.commitment_loss, found.counts)
    if arrays is None or not _has_shapes(found):
        return None
    codebook, commitment, counts = arrays
    if codebook.ndim or commitment.ndim or not 1 <= counts.ndim <= 2 or not counts.size:
        return None
    some, k = np.sum(counts > 0, axis=-1), counts.shape[-1]
    missing = int(np.sum(counts == 0))
    of = f"{len(counts)} x {k}" if counts.ndim > 1 else str(k)
    look = f"values {shape(found.values)}, labels {shape(found.labels)}"
    if missing:
        codes = f"{missing} code{'s' * (missing != 1)}"
        look = f"counts {shape(found.counts)}: {codes} without points"
    return [
        ("Quantized", f"points {shape(found.values)} by {of} codes"),
        ("usage", f"{span(some)} of {k} codes, perplexity {span(perplexity(counts))}"),
        ("codebook", f"loss {number(codebook)}"),
        ("commitment", f"loss {number(commitment)}"),
        ("look at", look),
    ]


def perplexity(counts: np.ndarray) -> np.ndarray:
    """As `Quantized.perplexity`, of numbers on this machine."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        share = counts / np.max(counts, axis=-1, keepdims=True)
        p = share / np.sum(share, axis=-1, keepdims=True)
        return np.exp(-np.sum(p * np.log(np.where(p == 0, 1, p)), axis=-1))


def lines_of_signs(found: Any) -> str:
    """The lines of a `LookupFreeQuantized`."""
    return lines_of(found, _rows_of_signs(found))


def _rows_of_signs(found: Any) -> list[tuple[str, str]] | None:
    arrays = known(*found[2:])
    if arrays is None or not _has_shapes(found) or any(a.ndim for a in arrays):
        return None
    commitment, loss, of_sample, of_batch = map(number, arrays)
    return [
        ("LookupFreeQuantized", f"points {shape(found.values)} by signs"),
        ("commitment", f"loss {commitment}"),
        ("entropy", f"loss {loss}"),
        ("", f"of a sample {of_sample}, of the batch {of_batch} nats"),
        ("look at", f"values {shape(found.values)}, labels {shape(found.labels)}"),
    ]


def _has_shapes(found: Any) -> bool:
    return all(getattr(a, "shape", None) is not None for a in found[:2])
