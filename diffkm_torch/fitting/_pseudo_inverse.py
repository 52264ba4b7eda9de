"""The inverse of a Hessian that may be singular, and whether it can be trusted."""

from __future__ import annotations

import torch
from torch import Tensor

from diffkm_torch._products import product


def pseudo_inverse(
    hessian: Tensor, scale: Tensor, push: Tensor
) -> tuple[Tensor | None, bool]:
    """The inverse of a Hessian H where it is positive, and whether that will do.

    By the eigenvalues of S H S with S = (counts_j s ∇²φ(c_j))^−½: the Hessian of a hard
    loss is what is in brackets, 2 counts if squared, so that this is near the identity
    where clusters are distinct. H⁻¹ is S (S H S)⁺ S: zero for clusters without weight,
    and along directions in which S H S is not positive. A negative eigenvalue is not to
    be trusted; a zero one, as that of lengths under `cosine`, only if `push` is not
    along it.

    Args:
        hessian: [kd, kd], symmetric.
        scale: S, [kd, kd], symmetric.
        push: How some change of the data changes the gradient, up to a factor, [kd].

    Returns:
        The inverse, [kd, kd], or None if the Hessian is not finite, and the trust.
    """
    eps, scaled = (
        torch.finfo(hessian.dtype).eps,
        product(product(scale, hessian), scale),
    )
    if not scaled.isfinite().all():
        return None, False
    values, vectors = torch.linalg.eigh(scaled)
    flat = eps**0.75 * values.abs().max()
    positive = values > flat
    inverses = torch.where(positive, 1 / torch.where(positive, values, 1), 0)
    inverse = product(vectors * inverses, vectors.T)

    push = product(vectors.T, product(scale, push[:, None]))[:, 0]
    harmless = push[~positive].norm() <= eps**0.5 * push.norm()
    trusted = bool(harmless and values.min() >= -flat)
    return product(product(scale, inverse), scale), trusted
