"""What a caller sees of a stream while it runs: a bar, a function, Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffkm_jax._hints import shown
from diffkm_jax._statistics import Statistics
from diffkm_jax.fitting._state import State


class Watch:
    """Shows steps, and asks a function whether to go on.

    Args:
        callback: Function of state and statistics, or None.
        progress: Whether to show a bar, on a terminal.
        total: Steps, if known.
    """

    def __init__(
        self,
        callback: Callable[[State, Statistics], Any] | None,
        progress: bool,
        total: int | None,
    ) -> None:
        self.callback, self.bar = callback, None
        if progress:
            self.bar = _tqdm()(total=total, disable=None, unit="step")

    def close(self) -> None:
        """The bar ends."""
        if self.bar is not None:
            self.bar.close()

    def stops(self, state: State, stats: Statistics) -> bool:
        """Whether the caller ends the fit with this step."""
        if self.bar is not None:
            self.bar.set_postfix(loss=f"{float(stats.loss):.6g}", refresh=False)
            self.bar.update()
        if self.callback is None:
            return False
        answer = self.callback(state, stats)
        try:
            return bool(answer)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"callback must return whether to stop, or None, got {shown(answer)}"
            ) from error


def _tqdm() -> Any:
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError(
            "progress needs tqdm: pip install 'diffkm[progress]', or pass a callback"
        ) from error
    return tqdm
