"""Curvature as products: GGN, Hessian, Fisher, and their sums over a loader."""

from jax_core.curvature.data_loader_mv import DataLoaderMV, reduce_add, reduce_concat
from jax_core.curvature.fisher import empirical_fisher_mv, mc_fisher_mv
from jax_core.curvature.ggn import ggn_mv
from jax_core.curvature.hessian import hessian_mv

__all__ = [
    "DataLoaderMV",
    "empirical_fisher_mv",
    "ggn_mv",
    "hessian_mv",
    "mc_fisher_mv",
    "reduce_add",
    "reduce_concat",
]
