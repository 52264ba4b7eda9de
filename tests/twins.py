"""Both packages side by side: values and gradients, compared row by row.

`compare` asks whether a JAX and a torch function agree, by a plainer rule than that of
`diffkm_torch.agreement`, which is tested apart.

The noise floor of a row is the largest change of it, on either side, when every input
is moved by one unit in the last place, and at least eps times its largest entry. Two
rows agree when they differ by at most 1000 floors, or `tol` times their largest entry.
One unit in the last place does not show the rounding of a saturated softmax, whose 1
stays 1: so a difference of 10 eps of the largest entry of a whole leaf passes too.

A row whose 1000 floors exceed 1 % of it is unresolved: agreement there means nothing,
so the share of such rows is returned, and a caller who expects none says so.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import diffkm_jax as dk
import diffkm_torch as dt

exact = partial(torch.testing.assert_close, rtol=0, atol=0)
TOLERANCE = {"float64": 1e-10, "float32": 1e-4}


def _is_float(array):
    return isinstance(array, np.ndarray) and array.dtype.kind == "f"


@cache
def pair(name, **options):
    """A function of both packages: the same objects, and so one program, every time."""
    return tuple(partial(getattr(module, name), **options) for module in (dk, dt))


@cache
def _compiled(function, wrt):
    @jax.jit
    def outputs_and_gradients(arrays, cotangents):
        fixed = {name: a for name, a in arrays.items() if name not in wrt}
        leaves, pullback = jax.vjp(
            lambda moving: jax.tree.leaves(function(**moving, **fixed)),
            {name: arrays[name] for name in wrt},
        )
        zeros = [jnp.zeros_like(leaf) for leaf in leaves]
        found = zip(leaves, cotangents, strict=True)
        seeds = [cotangent.astype(leaf.dtype) for leaf, cotangent in found]
        grads = [
            pullback([*zeros[:i], seed, *zeros[i + 1 :]])[0]
            for i, seed in enumerate(seeds)
        ]
        return leaves, grads

    return outputs_and_gradients


def _jax_side(function, arrays, wrt, cotangents):
    found = _compiled(function, tuple(wrt))(arrays, cotangents)
    return jax.tree.map(np.asarray, found)


def _torch_outputs(function, arrays, wrt):
    tensors = {name: torch.tensor(a) for name, a in arrays.items()}
    for name in wrt:
        tensors[name].requires_grad_()
    out = function(**tensors)
    return tensors, list(out) if isinstance(out, tuple) else [out]


def _torch_side(function, arrays, wrt, cotangents):
    tensors, leaves = _torch_outputs(function, arrays, wrt)
    inputs = [tensors[name] for name in wrt]
    grads = []
    for leaf, ct in zip(leaves, cotangents, strict=True):
        seed = torch.as_tensor(ct).to(leaf.dtype)
        found = [None] * len(inputs)
        if leaf.requires_grad:
            found = torch.autograd.grad(
                leaf, inputs, seed, retain_graph=True, allow_unused=True
            )
        grads.append(
            {
                name: np.zeros(arrays[name].shape) if g is None else g.numpy()
                for name, g in zip(wrt, found, strict=True)
            }
        )
    return [leaf.detach().numpy() for leaf in leaves], grads


def _flat(values, grads):
    named = {f"output {i}": v for i, v in enumerate(values)}
    for i, by_name in enumerate(grads):
        for name, g in by_name.items():
            named[f"d output {i} / d {name}"] = g
    return {name: np.atleast_1d(v).astype(np.float64) for name, v in named.items()}


def compare(ours, theirs, *, perturb=True, seed=0, size_of_gradient=0.0, **arrays):
    """Raises AssertionError where the two disagree; returns the share of unresolved.

    Args:
        ours: JAX function of keyword arrays to a floating array or tuple of them.
        theirs: The torch function.
        perturb: Whether inputs may be moved by one unit in the last place: not where
            they are tied exactly and the tie rule is what is compared.
        seed: Of the cotangents and the perturbations.
        size_of_gradient: That of which 10 eps are rounding wherever: 1/tau where all
            rows of a leaf may saturate.
        **arrays: NumPy arrays; floating ones are differentiated, 0-d ones too.
    """
    rng = np.random.default_rng(seed)
    wrt = [name for name, a in arrays.items() if _is_float(a)]
    dtype = arrays[wrt[0]].dtype
    _, outputs = _torch_outputs(theirs, arrays, wrt)
    cotangents = [np.asarray(rng.normal(size=o.shape), dtype) for o in outputs]
    sides = _jax_side, _torch_side
    functions = ours, theirs

    def both(inputs, cotangents):
        return [
            _flat(*side(f, inputs, wrt, cotangents))
            for side, f in zip(sides, functions, strict=True)
        ]

    base = both(arrays, cotangents)
    eps, tol = np.finfo(dtype).eps, TOLERANCE[dtype.name]

    def row_max(a):
        return np.max(np.abs(a), axis=-1, keepdims=True)

    floors = [{name: eps * row_max(v) for name, v in side.items()} for side in base]
    for _ in range(3 if perturb else 0):

        def move(a):
            sign = rng.choice([-1.0, 1.0], size=a.shape)
            return np.asarray(a * (1 + eps * sign), dtype)

        moved = arrays | {name: move(arrays[name]) for name in wrt}
        there_too = both(moved, [move(ct) for ct in cotangents])
        for floor, side, there in zip(floors, base, there_too, strict=True):
            for name in floor:
                change = row_max(np.nan_to_num(there[name] - side[name]))
                floor[name] = np.maximum(floor[name], change)
    rows = unresolved = 0
    for name, mine in base[0].items():
        other = base[1][name]
        assert mine.shape == other.shape, name
        np.testing.assert_array_equal(np.isnan(mine), np.isnan(other), err_msg=name)
        mine, other = np.nan_to_num(mine), np.nan_to_num(other)
        floor = 1000 * np.maximum(floors[0][name], floors[1][name])
        floor = np.nan_to_num(floor)
        size = np.maximum(row_max(mine), row_max(other))
        limit = np.maximum(floor, tol * size)
        limit = np.maximum(limit, 10 * eps * max(size_of_gradient, size.max(initial=0)))
        bad = np.abs(mine - other) > limit
        where = tuple(np.argwhere(bad)[0]) if bad.any() else ()
        pair = f"{mine[where]} against {other[where]}"
        assert not bad.any(), f"{name} disagrees at {bad.sum()}, as {where}: {pair}"
        rows += size.size
        unresolved += int((floor > 0.01 * np.maximum(size, 1e-300)).sum())
    return unresolved / rows


# A value and its gradients, from either package.


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


def with_gradients(f, *tensors):
    """All outputs of a torch function, and the gradients of a weighted sum of them."""
    tensors = [t.detach().clone().requires_grad_() for t in tensors]
    out = f(*tensors)
    out = (out,) if isinstance(out, torch.Tensor) else tuple(out)
    moving = [o for o in out if o.requires_grad]
    total = sum((o * torch.arange(1, o.numel() + 1).view_as(o)).sum() for o in moving)
    grads = torch.autograd.grad(total, tensors, allow_unused=True)
    return [o.detach() for o in out], [g for g in grads if g is not None]
