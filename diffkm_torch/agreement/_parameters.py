"""Leaves of a parameter tree of JAX, matched to the named parameters of a module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from diffkm_torch._hints import shown
from diffkm_torch.agreement._layouts import (
    Axes,
    Leaf,
    Shape,
    axes_of,
    fits,
    floating_leaves,
    names_of,
    permuted,
    without_collection,
)
from diffkm_torch.agreement._proposals import proposal

Target = str | tuple[str, Sequence[int] | None]
Rule = Mapping[str, Target] | Callable[[str], Target | None] | None

MAX_LISTED = 8


@dataclass(frozen=True)
class Match:
    """A leaf of a tree of JAX and the parameter of torch that it is.

    Attributes:
        path: Of the leaf, as "layers.0.kernel".
        name: Of the parameter, as "layers.0.weight".
        index: Of the leaf among `jax.tree.leaves` of the tree.
        axes: The permutation from JAX's axes to torch's, None if they are the same.
        shape: Of the leaf.
        torch_shape: Of the parameter; but for axes of length 1 the permuted shape.
    """

    path: str
    name: str
    index: int
    axes: Axes
    shape: Shape
    torch_shape: Shape

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """A value or a gradient of the leaf, laid out as torch's."""
        moved = array if self.axes is None else np.transpose(array, self.axes)
        return np.reshape(moved, self.torch_shape)

    def to_jax(self, array: np.ndarray) -> np.ndarray:
        """A value or a gradient of the parameter, laid out as JAX's."""
        moved = np.reshape(array, permuted(self.shape, self.axes))
        return (
            moved if self.axes is None else np.transpose(moved, np.argsort(self.axes))
        )


def check_on_cpu(whose: str, module: nn.Module) -> None:
    """Raises ValueError unless all tensors of a module are on the CPU."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.device.type != "cpu":
            where = f"{name} is on device {tensor.device}: hand in .cpu()"
            raise ValueError(f"{whose} must be on the CPU, but {where}")


def match_parameters(
    tree: Any,
    shapes: Mapping[str, Shape],
    match: Rule = None,
    *,
    buffers: Mapping[str, Shape] | None = None,
) -> tuple[Match, ...]:
    """Matches the floating arrays of a tree to parameters by name.

    Names are compared without flax's collections. Flax's kernel, scale and embedding
    are torch's weight, mean and var its running_mean and running_var. A kernel of two
    axes is transposed, one of more, (spatial..., in, out), becomes (out, in,
    spatial...). What has torch's name already has torch's layout.

    Args:
        tree: Any pytree; leaves that are no floating arrays are ignored.
        shapes: Of the parameters, by name. Each must get a leaf.
        match: From a path, or the head of one, to torch's: {"Dense_0": "0"}; or a
            function of the path. What stands for a whole path may be (name, axes). None
            of a function is the rule above.
        buffers: Shapes of the buffers, by name. They need no leaf.

    Returns:
        A `Match` for every floating array, in the order of the tree.

    Raises:
        TypeError: `match` is neither a mapping nor a function, or has another value.
        ValueError: A leaf or a parameter has no counterpart, or two have the same one;
            a shape does not fit; `match` names no path.
    """
    if match is not None and not callable(match) and not isinstance(match, Mapping):
        raise TypeError(f"match must be a dict or a function, got {shown(match)}")
    leaves = floating_leaves(tree)
    if not leaves:
        raise ValueError("params must hold at least one floating array, got none")
    buffers = buffers or {}
    there = {**shapes, **buffers}
    if isinstance(match, Mapping):
        match = {without_collection(path): to for path, to in match.items()}
        _check_paths(match, leaves)
    found = [_matched(leaf, there, match) for leaf in leaves]
    whose = "params" if match is None else "match"
    _check_names(leaves, found, shapes, buffers, whose)
    matches = [m for m in found if m is not None]
    for m in matches:
        if not fits(m.shape, m.axes, m.torch_shape):
            laid_out = "" if m.axes is None else f", with the axes {m.axes}"
            raise ValueError(
                f"{whose} must fit in shape, but {m.path} is {m.shape}{laid_out}, and "
                f"{m.name} of torch is {m.torch_shape}"
            )
    return tuple(matches)


def _matched(leaf: Leaf, there: Mapping[str, Shape], match: Rule) -> Match | None:
    """The match of a leaf, None if torch has no such name."""
    target, rest = _target(leaf, match)
    if not isinstance(target, str):
        name, axes = target
        axes = None if axes is None else tuple(axes)
    else:
        module = ".".join(filter(None, [target, rest.rpartition(".")[0]]))
        candidates = list(names_of(leaf.key, module)) if rest else [target]
        name = next((n for n in candidates if n in there), candidates[-1])
        axes = axes_of(leaf.key, name, len(leaf.shape))
    if name not in there:
        return None
    return Match(leaf.path, name, leaf.index, axes, leaf.shape, tuple(there[name]))


def _target(leaf: Leaf, match: Rule) -> tuple[Target, str]:
    """Torch's name, or that of a module and the rest of the path in it."""
    if match is None:
        return "", leaf.path
    if callable(match):
        target = match(leaf.path)
        return ("", leaf.path) if target is None else (_checked(target), "")
    heads = [head for head in match if _is_head(head, leaf.path)]
    if not heads:
        return "", leaf.path
    head = max(heads, key=len)
    target = _checked(match[head])
    if head == leaf.path:
        return target, ""
    if not isinstance(target, str):
        raise TypeError(
            f"match must give axes for single arrays, but {head!r} is the head of "
            f"{leaf.path!r}"
        )
    return target, leaf.path[len(head) :].lstrip(".")


def _is_head(head: str, path: str) -> bool:
    return head in ("", path) or path.startswith(f"{head}.")


def _checked(target: Any) -> Target:
    is_pair = isinstance(target, tuple) and len(target) == 2
    if isinstance(target, str) or (is_pair and isinstance(target[0], str)):
        return target
    raise TypeError(f"match must give a name, or (name, axes), got {shown(target)}")


def _check_paths(match: Mapping[str, Target], leaves: Sequence[Leaf]) -> None:
    for head in match:
        if not any(_is_head(head, leaf.path) for leaf in leaves):
            paths = _listed(leaf.path for leaf in leaves)
            raise ValueError(f"match must name paths of params ({paths}), got {head!r}")


def _check_names(
    leaves: Sequence[Leaf],
    found: Sequence[Match | None],
    shapes: Mapping[str, Shape],
    buffers: Mapping[str, Shape],
    whose: str,
) -> None:
    """Raises unless every leaf and every parameter has one counterpart."""
    taken: dict[str, str] = {}
    for m in found:
        if m is not None and m.name in taken:
            both = f"{taken[m.name]} and {m.path}"
            raise ValueError(
                f"{whose} must give every parameter one array, but {both} are both "
                f"{m.name}"
            )
        if m is not None:
            taken[m.name] = m.path
    lone = [leaf for leaf, m in zip(leaves, found, strict=True) if m is None]
    left = {n: tuple(s) for n, s in shapes.items() if n not in taken}
    if not lone and not left:
        return
    ours = _listed(f"{leaf.path} {leaf.shape}" for leaf in lone)
    theirs = _listed(f"{name} {shape}" for name, shape in left.items())
    free = {n: tuple(s) for n, s in buffers.items() if n not in taken}
    proposed = proposal(lone, left, free)
    order = f"; by order and shape match={proposed!r} fits" if proposed else ""
    raise ValueError(
        f"{whose} must match the parameters of module by name: without a counterpart "
        f"are {ours} in params, {theirs} in module{order}"
    )


def _listed(items: Iterable[str]) -> str:
    listed = list(items)
    more = len(listed) - MAX_LISTED
    rest = f" and {more} more" if more > 0 else ""
    return (", ".join(listed[:MAX_LISTED]) or "none") + rest
