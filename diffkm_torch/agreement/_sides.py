"""Which framework each function is of, and each function in one form.

All are called as fn(parameters, args, kwargs), the parameters arrays by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import torch
from torch import nn

from diffkm_torch._hints import shown
from diffkm_torch._leaves import combine
from diffkm_torch.agreement._arguments import as_numpy
from diffkm_torch.agreement._jax_side import JaxSide
from diffkm_torch.agreement._numpy_side import NumpySide
from diffkm_torch.agreement._parameters import (
    Match,
    check_on_cpu,
    match_parameters,
)
from diffkm_torch.agreement._task import Side, Task
from diffkm_torch.agreement._torch_side import ModuleOf, TorchSide

FRAMEWORKS = "jax", "torch", "numpy"
WHOSE = "jax_fn", "torch_fn"


@dataclass(frozen=True)
class Functions:
    """Both functions, and the parameters that they share.

    Attributes:
        given: As the user gave them.
        frameworks: Of each.
        forms: Each as a function of (parameters, args, kwargs).
        parameters: Values by torch's name, in its layout; none where the functions
            have only arguments.
        held: Names of those that are buffers, which are not differentiated.
        remarks: What a reader should know of the parameters.
    """

    given: tuple[Any, Any]
    frameworks: tuple[str, str]
    forms: tuple[Callable, Callable]
    parameters: Mapping[str, np.ndarray]
    held: frozenset[str]
    remarks: tuple[str, ...]

    def sides(self, task: Task) -> tuple[Side, Side]:
        """What each of them can do."""
        of: dict[str, Callable[..., Side]] = {"jax": JaxSide, "torch": TorchSide}
        made = []
        for given, framework, form, whose in zip(
            self.given, self.frameworks, self.forms, WHOSE, strict=True
        ):
            if framework == "numpy":
                vjp = given[1] if isinstance(given, tuple) else None
                made.append(NumpySide(form, vjp, task, whose))
            else:
                made.append(of[framework](form, task, whose))
        return made[0], made[1]


def functions(
    given: tuple[Any, Any], frameworks: Sequence[str] | None, params: Any, match: Any
) -> Functions:
    """Reads what the user gave."""
    found = _frameworks(given, frameworks)
    trees = [
        fn if kind == "jax" and _is_tree(fn) else None
        for fn, kind in zip(given, found, strict=True)
    ]
    if params is not None:
        params = jax.tree.map(_as_array, params)
        takers = [i for i in (0, 1) if found[i] == "jax" and trees[i] is None]
        if len(takers) != 1:
            raise ValueError(
                "params must go with one JAX function of (params, *args): got "
                f"{' and '.join(map(shown, given))}"
            )
        trees[takers[0]] = params
    modules = [fn if isinstance(fn, nn.Module) else None for fn in given]
    if match is not None and all(part is None for part in (*modules, *trees)):
        raise ValueError("match must go with params, modules or trees, got functions")
    parameters, matches, remarks = _shared(modules, trees, match)
    forms = []
    for fn, tree, module in zip(given, trees, modules, strict=True):
        if module is not None:
            is_first = module is modules[0] and modules[1] is not None
            own = {m.name: m.path for m in matches} if is_first else {}
            forms.append(ModuleOf(module, own))
        elif tree is not None and parameters:
            forms.append(_OfTree(fn, tree, matches, takes_tree=tree is params))
        else:
            forms.append(_Plain(fn[0] if isinstance(fn, tuple) else fn))
    if params is not None and not parameters:
        raise ValueError("params must go with an nn.Module on the other side")
    buffers = {n for m in modules if m is not None for n, _ in m.named_buffers()}
    held = frozenset(buffers & {*parameters})
    return Functions(given, found, (forms[0], forms[1]), parameters, held, remarks)


def _frameworks(given: tuple[Any, Any], named: Sequence[str] | None) -> tuple[str, str]:
    """Those named, else a module is torch's, and a function that of its position."""
    if named is None:
        found = tuple(
            "torch" if isinstance(fn, nn.Module) else "jax" if _is_tree(fn) else default
            for fn, default in zip(given, FRAMEWORKS, strict=False)
        )
    else:
        found = tuple(named)
        if isinstance(named, str) or len(found) != 2 or not {*found} <= {*FRAMEWORKS}:
            raise ValueError(f"frameworks must be two of {FRAMEWORKS}, got {named!r}")
    for fn, framework, whose in zip(given, found, WHOSE, strict=True):
        if isinstance(fn, nn.Module) and framework != "torch":
            raise ValueError(
                f"frameworks must name torch for {whose}, which is an nn.Module"
            )
        parts = fn if framework == "numpy" and isinstance(fn, tuple) else (fn,)
        if len(parts) > 2 or not all(map(callable, parts)):
            hint = ": a pair (fn, vjp) is NumPy's, which frameworks must name"
            hint = hint if isinstance(fn, tuple) else ""
            raise TypeError(f"{whose} must be a function, got {shown(fn)}{hint}")
        if isinstance(fn, nn.Module):
            check_on_cpu(whose, fn)
    return found[0], found[1]


def _is_tree(fn: Any) -> bool:
    """Whether a function is a tree with arrays in it, as equinox's modules are."""
    leaves = jax.tree.leaves(fn)
    return callable(fn) and any(isinstance(a, jax.Array | np.ndarray) for a in leaves)


def _shared(
    modules: list[nn.Module | None], trees: list[Any], match: Any
) -> tuple[dict[str, np.ndarray], tuple[Match, ...], tuple[str, ...]]:
    """Values of the parameters that both have, and where they are in a tree."""
    both = [m for m in modules if m is not None]
    tree = next((t for t in trees if t is not None), None)
    if len(both) == 2:
        tree = _values(both[0])
        both = both[1:]
    if not both:
        return {}, (), ()
    if tree is None:
        held = len(_values(both[0]))
        note = f"{held} parameters of the module are held: params would compare them"
        return {}, (), (note,) if held else ()
    there = _values(both[0])
    buffers = {n: as_numpy(b) for n, b in both[0].named_buffers()}
    matches = match_parameters(
        tree,
        {name: a.shape for name, a in there.items()},
        match,
        buffers={name: a.shape for name, a in buffers.items() if a.dtype.kind == "f"},
    )
    leaves = jax.tree.leaves(tree)
    values = {m.name: m.to_torch(as_numpy(leaves[m.index])) for m in matches}
    return values, matches, _moved(values, there | buffers)


def _as_array(leaf: Any) -> Any:
    """A tensor among parameters as an array of NumPy."""
    return as_numpy(leaf) if isinstance(leaf, torch.Tensor) else leaf


def _values(module: nn.Module) -> dict[str, np.ndarray]:
    return {n: as_numpy(p) for n, p in module.named_parameters()}


def _moved(
    values: Mapping[str, np.ndarray], there: Mapping[str, np.ndarray]
) -> tuple[str, ...]:
    """Of a module with other numbers than those that both are given."""
    names = [n for n, a in values.items() if not np.array_equal(a, there[n])]
    if not names:
        return ()
    others = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return (f"the module holds other numbers as {others}: the other side's are used",)


class _Plain:
    """A function that has only arguments."""

    def __init__(self, fn: Callable) -> None:
        self.__wrapped__ = fn

    def __call__(self, _: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        return self.__wrapped__(*args, **kwargs)


class _OfTree:
    """A JAX function of a tree of parameters, or a tree that is one."""

    def __init__(
        self, fn: Callable, tree: Any, matches: Sequence[Match], *, takes_tree: bool
    ) -> None:
        self.fn, self.matches, self.takes_tree = fn, matches, takes_tree
        self.leaves, self.structure = jax.tree.flatten(tree)

    def __call__(
        self, parameters: Mapping[str, Any], args: tuple, kwargs: dict[str, Any]
    ) -> Any:
        chosen = [m.to_jax(parameters[m.name]) for m in self.matches]
        leaves = combine(self.leaves, [m.index for m in self.matches], chosen)
        tree = jax.tree.unflatten(self.structure, leaves)
        if self.takes_tree:
            return self.fn(tree, *args, **kwargs)
        return tree(*args, **kwargs)
