"""The gradient of the summed loss, in one pass over the data."""

from __future__ import annotations

from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_core.curvature.sandwich import batched
from jax_core.data import trees
from jax_core.data.batches import Batch, batch_size, padded
from jax_core.likelihoods import Likelihood
from jax_core.types import ModelFn, Params
from jax_core.xla.chunks import sum_over_chunks
from jax_core.xla.compiled import as_jit_argument
from jax_core.xla.precision import full_precision


@full_precision
def loss_gradient(
    model_fn: ModelFn, params: Params, likelihood: Likelihood, batches: Iterable[Batch]
) -> tuple[Float[Array, " P"], int]:
    r"""$\sum_i \nabla_\theta \ell(f(x_i), y_i)$ over the flattened parameters, and the samples summed.

    Args:
        model_fn: For one example.
        params: Where the gradient is taken.
        likelihood: The loss.
        batches: The data, read once. Shorter batches are filled up to the first one's size, for one program.

    Raises:
        ValueError: If there are no samples.
    """
    model, total, samples, full = as_jit_argument(model_fn), None, 0, 0
    for batch in batches:
        count = batch_size(batch)
        full = full or count
        whole = padded(batch, max(0, full - count))
        gradient = _of_batch(model, params, likelihood, whole, jnp.asarray(count))
        total, samples = gradient if total is None else trees.add(total, gradient), samples + count
    if total is None:
        raise ValueError("There are no samples. Give at least one batch.")
    return trees.flattener(params)[0](total), samples


@jax.jit
def _of_batch(model_fn: ModelFn, params: Params, likelihood: Likelihood, batch: Batch, count: Array) -> Params:
    apply = batched(model_fn)
    numbered = Batch((batch.input, jnp.arange(batch_size(batch))), batch.target)

    def piece(part: Batch) -> Params:
        inputs, numbers = part.input

        def loss(p: Params) -> Array:
            losses = likelihood.nll(apply(p, inputs), part.target)
            return jnp.where(numbers < count, losses, 0.0).sum()

        return jax.grad(loss)(params)

    return sum_over_chunks(piece, numbered, model_fn=lambda x, p: model_fn(x[0], p), params=params)
