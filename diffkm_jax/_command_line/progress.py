"""How far a fit is, on stderr: a bar of tqdm's on a terminal, else lines."""

from __future__ import annotations

import sys
import time
from typing import Any

from diffkm_jax._command_line.output import say

# Seconds between lines, and before the first.
INTERVAL = 1.0


class Progress:
    """Shows steps, or nothing.

    Args:
        shown: Whether to; None is on a terminal only.
        number: How many fits there are.
        total: Limit of the steps of each.
    """

    def __init__(self, shown: bool | None, number: int, total: int) -> None:
        self.shown = on_terminal() if shown is None else shown
        self.number, self.total, self.fits, self.last = number, total, 0, 0.0
        self.bar: Any = None
        self.make = _tqdm() if self.shown and on_terminal() else None

    def begin(self) -> None:
        """Another fit begins."""
        self.close()
        self.fits, self.last = self.fits + 1, time.monotonic()
        if self.make is not None:
            options = {"delay": INTERVAL, "unit": "step", "leave": False}
            self.bar = self.make(total=self.total, desc=self._name(), **options)

    def due(self) -> bool:
        """Whether something is to be shown now."""
        now = time.monotonic()
        if not self.shown or now - self.last < INTERVAL:
            return False
        self.last = now
        return True

    def show(self, steps: int, loss: float, residual: float) -> None:
        """Where the fit is; where it is `due` only."""
        if self.bar is None:
            at = f"step {steps} of at most {self.total}"
            say(f"{self._name()}: {at}, loss {loss:.6g}, residual {residual:.3g}")
            return
        self.bar.set_postfix(loss=f"{loss:.6g}", residual=f"{residual:.3g}")
        self.bar.update(steps - self.bar.n)

    def close(self) -> None:
        """The bar goes away."""
        if self.bar is not None:
            self.bar.close()

    def _name(self) -> str:
        return "fit" if self.number == 1 else f"fit {self.fits} of {self.number}"


def on_terminal() -> bool:
    """Whether somebody looks at stderr."""
    return sys.stderr is not None and sys.stderr.isatty()


def _tqdm() -> Any:
    """The bar of tqdm, or None where that is not installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm
