"""How far a gradient can be trusted: an estimator's, and that of a fit."""

from diffkm_jax.diagnostics._certificate import Certificate, certificate
from diffkm_jax.diagnostics._evaluate import Report, evaluate, is_discrete

__all__ = ["Certificate", "Report", "certificate", "evaluate", "is_discrete"]
