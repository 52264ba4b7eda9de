"""How far a gradient can be trusted: an estimator's, and that of a fit."""

from diffkm_jax.diagnostics._certificate import Certificate, certificate
from diffkm_jax.diagnostics._discrete import is_discrete
from diffkm_jax.diagnostics._evaluate import evaluate
from diffkm_jax.diagnostics._report import Report
from diffkm_jax.diagnostics._tune import tune

__all__ = ["Certificate", "Report", "certificate", "evaluate", "is_discrete", "tune"]
