"""A value and its gradients from either package, as NumPy arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import diffkm_jax as dk
import diffkm_torch as dt


def jax_pull(f, cotangent, *arrays):
    value, pullback = jax.vjp(f, *map(jnp.asarray, arrays))
    grads = pullback(jnp.asarray(cotangent, value.dtype))
    return np.asarray(value), [np.asarray(g) for g in grads]


def torch_pull(f, cotangent, *arrays):
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    value = f(*tensors)
    cotangent = torch.as_tensor(cotangent).to(value.dtype)
    grads = torch.autograd.grad(value, tensors, cotangent, materialize_grads=True)
    return value.detach().numpy(), [g.numpy() for g in grads]


# A package, and its way to a value and its gradients by arrays.
BOTH = pytest.mark.parametrize(
    ("module", "pull"), [(dk, jax_pull), (dt, torch_pull)], ids=["jax", "torch"]
)


def jacobian(pull, f, *arrays):
    """The matrix of one row [1, d] in the first argument."""
    rows = [pull(f, e[None], *arrays)[1][0][0] for e in np.eye(arrays[0].shape[1])]
    return np.stack(rows)


def field(name, function, **options):
    """One field of a quantizer as a function of its arrays."""
    return lambda *arrays: getattr(function(*arrays, **options), name)
