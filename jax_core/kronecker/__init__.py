"""Kronecker factors of each layer's curvature, and what is exact in their eigenvectors' coordinates."""

from jax_core.kronecker.fit import KroneckerStructure, fit_kronecker
from jax_core.kronecker.plan import plan_kronecker
from jax_core.kronecker.steps import KfacApprox

__all__ = ["KfacApprox", "KroneckerStructure", "fit_kronecker", "plan_kronecker"]
