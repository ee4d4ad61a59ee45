"""Generalised Gauss-Newton products (Schraudolph, Neural Computation 14(7), 2002, doi:10.1162/08997660260028683)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jax_core.curvature.sandwich import sandwich_mv
from jax_core.likelihoods import as_likelihood
from jax_core.types import Data, ModelFn, Params


def ggn_mv(
    model_fn: ModelFn,
    params: Params,
    loss_fn: Any,
    factor: Any = 1.0,
    *,
    vmap_over_data: bool = True,
    loss_hessian_mv: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None = None,
) -> Callable[[Params, Data], Params]:
    r"""$v \mapsto \text{factor} \sum_i J_i^\top H_i J_i\, v$ with the data as an argument.

    $J_i$ is the Jacobian of the model's output for sample $i$ with respect to the parameters and $H_i$ the Hessian of
    the loss with respect to that output: analytic for the named losses, never formed as a matrix.

    Args:
        model_fn: ``model_fn(input, params)`` for one example (or a batch, see ``vmap_over_data``).
        params: Pytree at which to linearise.
        loss_fn: ``"cross_entropy"``, ``"mse"``, ``"binary_cross_entropy"``, ``"none"``, a callable
            ``loss(output, target)`` of one sample or a likelihood.
        factor: Scale of the sum, ``num_total_samples / num_curv_samples`` for a subset of the data.
        vmap_over_data: Whether ``model_fn`` takes one example. With ``False`` it takes the batch.
        loss_hessian_mv: Replaces the loss's Hessian: ``(vector, output, target) -> H vector`` of one sample.

    Returns:
        ``mv(vec, data)``; ``vec`` and the result are shaped like ``params``, ``data`` is ``{"input", "target"}`` or
        an ``(input, target)`` pair with a leading batch axis. Safe under ``jit`` and ``vmap``.

    Raises:
        ValueError: If the name of the loss is unknown.
    """
    if loss_hessian_mv is not None:
        one = loss_hessian_mv
        return sandwich_mv(
            model_fn,
            params,
            lambda outputs, batch, v: jax.vmap(one)(v, outputs, batch.target),
            factor,
            vmap_over_data=vmap_over_data,
        )
    likelihood = as_likelihood(loss_fn)
    return sandwich_mv(
        model_fn,
        params,
        lambda outputs, batch, v: likelihood.hessian_mv(outputs, batch.target, v),
        factor,
        vmap_over_data=vmap_over_data,
    )
