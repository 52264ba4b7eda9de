"""What a module shows of itself where its names are asked for, as by completion."""

from __future__ import annotations

import sys
from functools import partial
from types import ModuleType

# Of the package, imported by who asks for them.
LATER = {"agreement", "bridge"}


def show_public(package: str) -> None:
    """Makes `dir` of a package, and of its parts with `__all__`, the public names."""
    for name, module in [*sys.modules.items()]:
        if f"{name}.".startswith(f"{package}.") and hasattr(module, "__all__"):
            vars(module)["__dir__"] = partial(_public, module)


def _public(module: ModuleType) -> list[str]:
    own = {name for name in vars(module) if name.startswith("__") or name in LATER}
    return sorted({*module.__all__, *own})
