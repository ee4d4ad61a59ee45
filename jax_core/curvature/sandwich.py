r"""The one shape all output-space curvatures share: $\sum_i J_i^\top M_i J_i\, v$.

GGN, empirical Fisher and Monte Carlo Fisher differ only in the matrix $M_i$ between the two Jacobian products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jax_core.data import trees
from jax_core.data.batches import Batch, as_batch
from jax_core.types import Data, ModelFn, Params
from jax_core.xla.chunks import sum_over_chunks
from jax_core.xla.convolutions import with_fast_convolutions
from jax_core.xla.precision import full_precision

OutputProduct = Callable[[jax.Array, Batch, jax.Array], jax.Array]
"""``(outputs, batch, vector) -> M vector``, all of shape ``(B, ..., C)``."""


def batched(model_fn: ModelFn, *, vmap_over_data: bool = True) -> Callable[[Params, Any], jax.Array]:
    """``(params, inputs) -> outputs (B, ..., C)`` from a model of one example, or of a batch."""
    model_fn = with_fast_convolutions(model_fn)
    if vmap_over_data:
        return lambda params, inputs: jax.vmap(lambda x: model_fn(x, params))(inputs)
    return lambda params, inputs: model_fn(inputs, params)


def single(model_fn: ModelFn, *, vmap_over_data: bool = True) -> ModelFn:
    """``(input, params) -> output`` of one example from a model of one example, or of a batch."""
    model_fn = with_fast_convolutions(model_fn)
    if vmap_over_data:
        return model_fn
    return lambda x, params: model_fn(jax.tree.map(lambda leaf: leaf[None], x), params)[0]


def sandwich_mv(
    model_fn: ModelFn, params: Params, product: OutputProduct, factor: Any, *, vmap_over_data: bool = True
) -> Callable[[Params, Data], Params]:
    r"""``mv(vec, data)`` $= \text{factor} \sum_i J_i^\top M_i J_i\, \text{vec}$.

    One linearisation of the model per chunk of data serves the Jacobian product and, transposed, its adjoint.
    """
    apply = batched(model_fn, vmap_over_data=vmap_over_data)
    one = single(model_fn, vmap_over_data=vmap_over_data)

    @full_precision
    def mv(vec: Params, data: Data) -> Params:
        batch = jax.tree.map(jnp.asarray, as_batch(data))

        def piece(part: Batch) -> Params:
            outputs, jacobian = jax.linearize(lambda p: apply(p, part.input), params)
            middle = product(outputs, part, jacobian(vec))
            return jax.linear_transpose(jacobian, params)(middle)[0]

        return trees.scale(factor, sum_over_chunks(piece, batch, model_fn=one, params=params))

    return mv
