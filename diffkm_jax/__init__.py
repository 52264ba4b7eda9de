"""Differentiable k-means in JAX: losses, assignments, optimizers and fits.

In the examples of the docstrings `import jax, jax.numpy as jnp, numpy as np, optax` and
`import diffkm_jax as dk` have run, and `es` is `dk.estimators`; in those of the torch
package also `import torch, diffkm_torch as dt`.

Points, centroids and weights that are integers or bools become the default float.
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffkm_jax._names import *  # noqa: F403
    from diffkm_jax._names import __all__ as __all__

    __version__: str
else:

    def __getattr__(name: str) -> Any:
        """A public name; the first that is asked for loads them all.

        Thus the command line shows its help without JAX, whose import takes longer.
        """
        if not name.startswith("_") or name in ("__all__", "__version__"):
            if "__version__" not in globals():
                _load()
            if name in globals():
                return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        _load()
        return __dir__()  # That of `show_public`.

    def _load() -> None:
        names = import_module("diffkm_jax._names")
        globals().update({name: getattr(names, name) for name in names.__all__})
        globals().update(__all__=names.__all__, __version__=metadata.version("diffkm"))
        import_module("diffkm_jax._public").show_public(__name__)
