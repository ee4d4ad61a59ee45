"""Choosing the prior."""

from jax_core.tuning.prior_precision import Tuned, maximize_evidence, spectrum

__all__ = ["Tuned", "maximize_evidence", "spectrum"]
