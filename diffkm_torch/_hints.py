"""What a caller may have meant, under the names of `diffkm_jax._hints`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")
# Words of scikit-learn and others: the parameter meant, and what to do without it.
WORDS = {
    "X": ("points", ""),
    "algorithm": ("optimizer", ""),
    "batch_size": ("", "update takes one batch after another"),
    "init": ("", "the start is centroids"),
    "max_iter": ("max_steps", "fit takes max_steps"),
    "metric": ("distance", ""),
    "n_clusters": ("", "centroids has k rows"),
    "n_init": ("", "fit once for each of several starts"),
    "random_state": ("", "nothing is drawn here"),
    "sample_weight": ("weights", ""),
    "seed": ("", "nothing is drawn here"),
    "tau": ("temperature", ""),
    "verbose": ("", "the result has a history"),
}


def hinted(function: Callable[P, R]) -> Callable[P, R]:
    """The function; the error of a call that does not fit its signature says more."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except TypeError as error:
            hint = hint_for_call(function, args, kwargs)
            if not hint:
                raise
            raise TypeError(f"{error}: {hint}") from None

    return call


def hint_for_call(function: Callable, args: tuple, kwargs: dict[str, Any]) -> str:
    """What to do about arguments that do not fit a signature; empty if they do."""
    signature = inspect.signature(function)
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        names = signature.parameters
        for word in [name for name in kwargs if name in WORDS and name not in names]:
            meant, otherwise = WORDS[word]
            return f"it is {meant} here" if meant in names else otherwise
        keywords = [p.name for p in names.values() if p.kind == p.KEYWORD_ONLY]
        if len(args) > len(names) - len(keywords) and keywords:
            return f"the rest are keywords, as {keywords[0]}="
    return ""


def shown(value: object) -> str:
    """A value in a message: on one line, without an address."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}, dtype {value.dtype}"
    name = getattr(value, "__name__", None)
    if callable(value) and isinstance(name, str):
        return name
    text = repr(value)
    is_short = len(text) <= 80 and "\n" not in text and " at 0x" not in text
    return text if is_short else f"an object of type {type(value).__name__}"


def no_tensor(name: str, value: object) -> str:
    """What a value is that is no dense tensor, and how to make one of it."""
    kind, library = type(value).__name__, type(value).__module__.partition(".")[0]
    if name == "centroids" and hasattr(value, "centroids"):
        return f"{kind}: pass its .centroids"
    if name == "centroids" and isinstance(value, int):
        return f"{kind}: pass k rows of points as a start"
    if isinstance(value, Tensor):
        return f"layout {value.layout}: pass a dense tensor, {name}.to_dense()"
    if hasattr(value, "todense"):
        return f"{kind}, which is sparse: pass torch.as_tensor({name}.todense())"
    if library in ("jax", "jaxlib"):
        return f"{kind}, of JAX: pass torch.from_dlpack({name}), or call diffkm_jax"
    if isinstance(value, list | tuple) or library == "numpy":
        return f"{kind}: pass torch.as_tensor({name})"
    return shown(value) if value is None or isinstance(value, str) else kind
