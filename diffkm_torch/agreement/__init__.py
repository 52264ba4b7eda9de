"""Do a JAX and a torch function agree, in value and in every gradient?

from diffkm_torch.agreement import assert_gradients_agree

assert_gradients_agree(jax_fn, torch_fn, points, centroids)  # NumPy arrays
"""

try:
    import jax as jax
except ImportError as error:
    raise ImportError(
        "diffkm_torch.agreement calls JAX, which is not installed: pip install diffkm"
    ) from error

from diffkm_torch.agreement._compare import assert_gradients_agree, compare_gradients
from diffkm_torch.agreement._report import Pair, Report
from diffkm_torch.agreement._step_report import Parting, Step, StepsReport
from diffkm_torch.agreement._steps import compare_steps

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
