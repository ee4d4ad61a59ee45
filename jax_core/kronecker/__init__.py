"""Kronecker factors of each layer's curvature, and what is exact in their eigenvectors' coordinates."""

from jax_core.kronecker.fit import KroneckerStructure, describe_layers, fit_kronecker

__all__ = ["KroneckerStructure", "describe_layers", "fit_kronecker"]
