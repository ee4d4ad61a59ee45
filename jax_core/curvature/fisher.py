"""Fisher information products, empirical and by Monte Carlo (Kunstner et al., 2019, arXiv:1905.12558)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jax_core.curvature.sandwich import sandwich_mv
from jax_core.data.batches import Batch
from jax_core.likelihoods import as_likelihood, score
from jax_core.types import Data, ModelFn, Params


def empirical_fisher_mv(
    model_fn: ModelFn, params: Params, loss_fn: Any, factor: Any = 1.0, *, vmap_over_data: bool = True
) -> Callable[[Params, Data], Params]:
    r"""$v \mapsto \text{factor} \sum_i g_i g_i^\top v$, $g_i = \nabla_\theta \ell(f(x_i), y_i)$ at the given targets.

    Arguments and result are those of :func:`~jax_core.curvature.ggn.ggn_mv`.
    """
    likelihood = as_likelihood(loss_fn)

    def product(outputs: jax.Array, batch: Batch, vector: jax.Array) -> jax.Array:
        return rank_one(score(likelihood, outputs, batch.target), vector)

    return sandwich_mv(model_fn, params, product, factor, vmap_over_data=vmap_over_data)


def mc_fisher_mv(
    model_fn: ModelFn,
    params: Params,
    loss_fn: Any,
    factor: Any = 1.0,
    *,
    key: jax.Array,
    num_samples: int = 1,
    vmap_over_data: bool = True,
) -> Callable[[Params, Data], Params]:
    r"""The empirical Fisher at targets drawn from the model, averaged over ``num_samples`` draws per sample.

    Its expectation over ``key`` is the GGN for the named likelihoods. The draws are a function of the key and of the
    batch's inputs, so that repeated products with the same batch are products with one matrix.
    """
    likelihood = as_likelihood(loss_fn)

    def product(outputs: jax.Array, batch: Batch, vector: jax.Array) -> jax.Array:
        def one_draw(draw_key: jax.Array) -> jax.Array:
            target = lax.stop_gradient(likelihood.sample(draw_key, outputs))
            return rank_one(score(likelihood, outputs, target), vector)

        keys = jax.random.split(jax.random.fold_in(key, bits_of(batch.input)), num_samples)
        return jax.vmap(one_draw)(keys).mean(0)

    return sandwich_mv(model_fn, params, product, factor, vmap_over_data=vmap_over_data)


def rank_one(gradient: jax.Array, vector: jax.Array) -> jax.Array:
    r"""$g_i g_i^\top v_i$ for each sample."""
    axes = tuple(range(1, gradient.ndim))
    return gradient * (gradient * vector).sum(axes, keepdims=True)


def bits_of(inputs: Any) -> jax.Array:
    """A number that differs between batches and repeats for the same batch."""
    total = jnp.zeros((), jnp.uint32)
    for leaf in jax.tree.leaves(inputs):
        as_float = leaf.astype(jnp.float32)
        total = total * jnp.uint32(31) + lax.bitcast_convert_type(as_float, jnp.uint32).sum(dtype=jnp.uint32)
    return total
