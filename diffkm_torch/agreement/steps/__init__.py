"""Do optimizer steps of torch and of optax agree, and if not, what parts first?"""

from diffkm_torch.agreement.steps._report import Parting, Step, StepsReport
from diffkm_torch.agreement.steps._steps import compare_steps

__all__ = ["Parting", "Step", "StepsReport", "compare_steps"]
