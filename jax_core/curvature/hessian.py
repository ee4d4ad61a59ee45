"""Products with the Hessian of the summed loss (Pearlmutter, 1994, doi:10.1162/neco.1994.6.1.147)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jax_core.curvature.sandwich import batched, single
from jax_core.data import trees
from jax_core.data.batches import Batch, as_batch
from jax_core.likelihoods import as_likelihood
from jax_core.types import Data, ModelFn, Params
from jax_core.xla.chunks import sum_over_chunks
from jax_core.xla.precision import full_precision


def hessian_mv(
    model_fn: ModelFn, params: Params, loss_fn: Any, factor: Any = 1.0, *, vmap_over_data: bool = True
) -> Callable[[Params, Data], Params]:
    r"""$v \mapsto \text{factor}\; \nabla_\theta^2 \sum_i \ell(f(x_i), y_i)\, v$, forward over reverse.

    Arguments and result are those of :func:`~jax_core.curvature.ggn.ggn_mv`. The Hessian of a
    network is indefinite in general; the low-rank reductions refuse it when it is.
    """
    likelihood = as_likelihood(loss_fn)
    apply = batched(model_fn, vmap_over_data=vmap_over_data)
    one = single(model_fn, vmap_over_data=vmap_over_data)

    @full_precision
    def mv(vec: Params, data: Data) -> Params:
        batch = jax.tree.map(jnp.asarray, as_batch(data))

        def piece(part: Batch) -> Params:
            gradient = jax.grad(lambda p: likelihood.nll(apply(p, part.input), part.target).sum())
            return jax.jvp(gradient, (params,), (vec,))[1]

        return trees.scale(factor, sum_over_chunks(piece, batch, model_fn=one, params=params))

    return mv
