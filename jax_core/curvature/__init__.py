"""Curvature as products: GGN, Hessian, Fisher, and their sums over a loader."""

from jax_core.curvature.data_loader_mv import DataLoaderMV, reduce_add, reduce_concat
from jax_core.curvature.fisher import (
    create_empirical_fisher_mv,
    create_empirical_fisher_mv_without_data,
    create_mc_fisher_mv,
    create_mc_fisher_mv_without_data,
)
from jax_core.curvature.ggn import create_ggn_mv, create_ggn_mv_without_data
from jax_core.curvature.hessian import create_hessian_mv, create_hessian_mv_without_data

__all__ = [
    "DataLoaderMV",
    "create_empirical_fisher_mv",
    "create_empirical_fisher_mv_without_data",
    "create_ggn_mv",
    "create_ggn_mv_without_data",
    "create_hessian_mv",
    "create_hessian_mv_without_data",
    "create_mc_fisher_mv",
    "create_mc_fisher_mv_without_data",
    "reduce_add",
    "reduce_concat",
]
