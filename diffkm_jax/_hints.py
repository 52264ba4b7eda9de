"""What a caller may have meant: the end of the message of an error."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

P = ParamSpec("P")
R = TypeVar("R")
# Words of scikit-learn and others: the parameter meant, and what to do without it.
WORDS = {
    "X": ("points", ""),
    "algorithm": ("optimizer", ""),
    "batch_size": ("", "fit_minibatch takes batch_size, update one batch at a time"),
    "init": (
        "initializer",
        "the start is centroids; fit_restarts takes an initializer",
    ),
    "max_iter": ("max_steps", "fit takes max_steps, fit_minibatch num_steps"),
    "max_steps": ("num_steps", ""),
    "metric": ("distance", ""),
    "n_clusters": ("k", "centroids has k rows; for k alone, fit_restarts(key, x, k)"),
    "n_init": ("num_restarts", "fit_restarts takes num_restarts"),
    "n_local_trials": ("num_candidates", "kmeans_plus_plus takes num_candidates"),
    "random_state": ("key", "nothing is drawn here; fit_restarts takes a key"),
    "sample_weight": ("weights", ""),
    "seed": ("key", "nothing is drawn here; fit_restarts takes a key"),
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
        if next(iter(names), "") == "key" and not is_key(*args[:1]):
            return "a random key comes first, as jax.random.key(0)"
        keywords = [p.name for p in names.values() if p.kind == p.KEYWORD_ONLY]
        if len(args) > len(names) - len(keywords) and keywords:
            return f"the rest are keywords, as {keywords[0]}="
    return ""


def is_key(value: object = None) -> bool:
    """Whether a value is one random key, typed or raw."""
    if not isinstance(value, jax.Array | np.ndarray):
        return False
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return value.ndim == 0
    return value.dtype == np.uint32 and value.ndim == 1


def shown(value: object) -> str:
    """A value in a message: on one line, without an address."""
    if isinstance(value, jax.Array | np.ndarray):
        return f"an array of shape {value.shape}, dtype {value.dtype}"
    name = getattr(value, "__name__", None)
    if callable(value) and isinstance(name, str):
        return name
    text = repr(value)
    is_short = len(text) <= 80 and "\n" not in text and " at 0x" not in text
    return text if is_short else f"an object of type {type(value).__name__}"


def library_of(value: object) -> str:
    """The package that the type of a value is from."""
    return type(value).__module__.partition(".")[0]


def no_array(name: str, value: object) -> str:
    """What a value is that is no array of numbers, and how to make one of it."""
    kind = type(value).__name__
    if name == "centroids" and hasattr(value, "centroids"):
        return f"{kind}: pass its .centroids"
    if library_of(value) == "torch":
        dense = ".to_dense()" if "sparse" in str(getattr(value, "layout", "")) else ""
        return (
            f"a torch tensor: pass jnp.asarray({name}.detach(){dense}.cpu()"
            ".float().numpy()), or call diffkm_torch, or "
            "diffkm_torch.bridge.jax_to_torch of this function"
        )
    if hasattr(value, "todense"):
        return f"{kind}, which is sparse: pass a dense array, {name}.todense()"
    return shown(value) if value is None or isinstance(value, str) else kind
