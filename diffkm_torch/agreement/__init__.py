"""Do two functions agree, in value and in every gradient? JAX, torch, NumPy.

from diffkm_torch.agreement import assert_gradients_agree

assert_gradients_agree(jax_fn, torch_fn, points, centroids)  # NumPy arrays
"""

try:
    import jax as jax
except ImportError as error:
    raise ImportError(
        "diffkm_torch.agreement calls JAX, which is not installed: pip install diffkm"
    ) from error

from diffkm_torch._public import show_public
from diffkm_torch.agreement._compare import assert_gradients_agree, compare_gradients
from diffkm_torch.agreement._report import Pair, Report
from diffkm_torch.agreement.steps import Parting, Step, StepsReport, compare_steps

__all__ = [
    "Pair",
    "Parting",
    "Report",
    "Step",
    "StepsReport",
    "assert_gradients_agree",
    "compare_gradients",
    "compare_steps",
]

show_public(__name__)
