"""What a certificate says in five lines, and what to look at if it licenses nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffkm_jax._printed import has_rank, known, lines_of, number


def lines_of_certificate(found: Any) -> str:
    """The lines of a `Certificate`."""
    return lines_of(found, _rows(found))


def _rows(found: Any) -> list[tuple[str, str]] | None:
    """The rows; None of what is traced, mapped over, or no numbers at all."""
    numbers = known(*found[1:])
    if numbers is None or not has_rank(found.margin, 1):
        return None
    if any(a.ndim for a in numbers):
        return None
    by_name = dict(zip(found._fields[1:], map(float, numbers), strict=True))
    text = {name: number(value, 4) for name, value in by_name.items()}
    undecided = f"{text['num_undecided']} of {len(found.margin)} undecided"
    radii = f"centroids may move {text['label_radius']}, points {text['point_radius']}"
    eigenvalue = f"{text['smallest_eigenvalue']} ± {text['eigenvalue_error']}"
    return [
        ("Certificate", "valid" if by_name["valid"] else "NOT VALID"),
        ("labels", f"{undecided}; {radii}"),
        ("curvature", f"smallest eigenvalue {eigenvalue}"),
        ("rest", f"at distance {text['distance']}, residual {text['residual']}"),
        ("look at", _look_at(by_name)),
    ]


def _look_at(found: dict[str, float]) -> str:
    if found["valid"]:
        return "the implicit gradient, which is licensed at the rest nearby"
    if not np.isfinite([found["residual"], found["gradient_norm"]]).all():
        return "points, weights and centroids: their gradient is not finite"
    least, error = found["smallest_eigenvalue"], found["eigenvalue_error"]
    if least < -error:
        return "smallest_eigenvalue: below zero, at a saddle or not at rest"
    if not least > error:
        return "smallest_eigenvalue: not known to be positive; more num_iterations tell"
    if found["num_undecided"]:
        return "margin: ties, or float64 decides"
    return "distance: another full step may change labels; go on, with a smaller tol"
