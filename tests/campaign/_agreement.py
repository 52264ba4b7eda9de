"""compare_gradients itself: honest pairs are not refused, planted defects are named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from diffkm_torch.agreement import compare_gradients
from tests.campaign._cells import Cell
from tests.campaign._pairs_honest import honest
from tests.defects import DEFECTS, FIRST, check_named


def check_honest(i: int) -> None:
    """Raises where the i-th honest pair is refused."""
    _, pair, arrays, options = honest(i)
    report = compare_gradients(*pair, *arrays, jit=False, **options)
    assert not report.disagreements, str(report)


def check_defect(name: str, *, jit: bool) -> None:
    """Raises unless the defect is caught, and its leaf and side are named."""
    defect = DEFECTS[name]
    report = compare_gradients(
        defect.jax_fn, defect.torch_fn, *defect.args, jit=jit, **defect.options
    )
    check_named(report, defect)


def cells(pairs: int = 1000) -> Iterator[Cell]:
    """So many honest pairs, and every defect, compiled and not."""

    def cell(kind: str, label: str, check: Callable[[], object]) -> Cell:
        return Cell("agreement", kind, label, check)

    for i in range(pairs):
        yield cell("honest pairs", f"{i} {honest(i)[0]}", partial(check_honest, i))
    for name in DEFECTS:
        kind = "the first defects" if name in FIRST else "further defects"
        yield cell(kind, name, partial(check_defect, name, jit=False))
        yield cell(f"{kind}, jit", name, partial(check_defect, name, jit=True))
