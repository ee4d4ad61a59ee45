"""Curvature products by the tutorial's names, with the data as an argument or fixed.

``"mse"`` is half the squared error here. laplax's has no half: its GGN and Hessian are twice ours, its empirical Fisher
four times; ``lambda output, target: jnp.sum((output - target) ** 2)`` in its place gives laplax's numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jax_core.curvature import empirical_fisher_mv, ggn_mv, hessian_mv, mc_fisher_mv
from jax_core.data.batches import batch_size
from jax_core.types import Data, ModelFn, Params

create_ggn_mv_without_data = ggn_mv
create_hessian_mv_without_data = hessian_mv
create_empirical_fisher_mv_without_data = empirical_fisher_mv
create_mc_fisher_mv_without_data = mc_fisher_mv


def create_ggn_mv(
    model_fn: ModelFn,
    params: Params,
    data: Data,
    loss_fn: Any = None,
    *,
    num_curv_samples: int | None = None,
    num_total_samples: int | None = None,
    vmap_over_data: bool = True,
    loss_hessian_mv: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None = None,
) -> Callable[[Params], Params]:
    """:func:`~jax_core.curvature.ggn.ggn_mv` with the data fixed.

    The factor is ``num_total_samples / num_curv_samples``: the second defaults to the samples in ``data``, the first
    to the second. ``"mse"`` is half the squared error, of which laplax leaves out the half: its product is twice this.
    """
    factor = _sample_factor(data, num_curv_samples, num_total_samples)
    mv = ggn_mv(model_fn, params, loss_fn, factor, vmap_over_data=vmap_over_data, loss_hessian_mv=loss_hessian_mv)
    return _fix_data(mv, data)


def create_hessian_mv(
    model_fn: ModelFn,
    params: Params,
    data: Data,
    loss_fn: Any,
    *,
    num_curv_samples: int | None = None,
    num_total_samples: int | None = None,
    vmap_over_data: bool = True,
) -> Callable[[Params], Params]:
    """:func:`~jax_core.curvature.hessian.hessian_mv` with the data fixed, scaled as in :func:`create_ggn_mv`."""
    factor = _sample_factor(data, num_curv_samples, num_total_samples)
    return _fix_data(hessian_mv(model_fn, params, loss_fn, factor, vmap_over_data=vmap_over_data), data)


def create_empirical_fisher_mv(
    model_fn: ModelFn,
    params: Params,
    data: Data,
    loss_fn: Any,
    *,
    num_curv_samples: int | None = None,
    num_total_samples: int | None = None,
    vmap_over_data: bool = True,
) -> Callable[[Params], Params]:
    """:func:`~jax_core.curvature.fisher.empirical_fisher_mv` with fixed data, scaled as in :func:`create_ggn_mv`."""
    factor = _sample_factor(data, num_curv_samples, num_total_samples)
    return _fix_data(empirical_fisher_mv(model_fn, params, loss_fn, factor, vmap_over_data=vmap_over_data), data)


def create_mc_fisher_mv(
    model_fn: ModelFn,
    params: Params,
    data: Data,
    loss_fn: Any,
    *,
    key: jax.Array,
    num_samples: int = 1,
    num_curv_samples: int | None = None,
    num_total_samples: int | None = None,
    vmap_over_data: bool = True,
) -> Callable[[Params], Params]:
    """:func:`~jax_core.curvature.fisher.mc_fisher_mv` with the data fixed, scaled as in :func:`create_ggn_mv`."""
    factor = _sample_factor(data, num_curv_samples, num_total_samples)
    mv = mc_fisher_mv(
        model_fn, params, loss_fn, factor, key=key, num_samples=num_samples, vmap_over_data=vmap_over_data
    )
    return _fix_data(mv, data)


def wrap_function(
    fn: Callable[..., Any],
    input_fn: Callable[[Any], Any] | None = None,
    output_fn: Callable[[Any], Any] | None = None,
) -> Callable[..., Any]:
    """``output_fn . fn . input_fn`` on the first argument.

    A product that sums over a loader (anything with a ``map_product`` method) stays such a sum: the wrapping goes
    inside, so that the loader is still read once by whatever consumes the wrapped product.
    """
    before, after = input_fn or (lambda x: x), output_fn or (lambda x: x)

    def wrap(inner: Callable[..., Any]) -> Callable[..., Any]:
        return lambda vec, *args: after(inner(before(vec), *args))

    map_product = getattr(fn, "map_product", None)
    return wrap(fn) if map_product is None else map_product(wrap)


def _fix_data(mv: Callable[[Params, Data], Params], data: Data) -> Callable[[Params], Params]:
    """Fix the data of a product."""
    return lambda vec: mv(vec, data)


def _sample_factor(data: Data, num_curv_samples: int | None, num_total_samples: int | None) -> float:
    """``num_total_samples / num_curv_samples``; the first defaults to the second, the second to the batch's size."""
    if batch_size(data) == 0:
        raise ValueError("The data holds no samples, so its curvature is zero. Give at least one sample.")
    curvature_samples = batch_size(data) if num_curv_samples is None else num_curv_samples
    return (curvature_samples if num_total_samples is None else num_total_samples) / curvature_samples
