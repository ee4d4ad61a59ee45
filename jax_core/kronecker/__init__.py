"""Kronecker factors of each layer's curvature, and what is exact in their eigenvectors' coordinates."""

from jax_core.kronecker.fit import KroneckerStructure, fit_kronecker
from jax_core.kronecker.plan import plan_kronecker

__all__ = ["KroneckerStructure", "fit_kronecker", "plan_kronecker"]
