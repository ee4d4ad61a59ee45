"""The sampled predictive: weights drawn from the posterior, each pushed through the network itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_core.data.trees import flattener
from jax_core.posterior import Posterior
from jax_core.predictive.linearized import GaussianOutputs
from jax_core.types import ModelFn, Params
from jax_core.xla.compiled import as_jit_argument
from jax_core.xla.convolutions import with_fast_convolutions
from jax_core.xla.precision import full_precision


def sampled_predictive(
    model_fn: ModelFn, posterior: Posterior, *, key: Array, num_samples: int
) -> Callable[[Any], Float[Array, "S B *output"]]:
    r"""Make the function from a batch of inputs to $f_{\theta_s}(x)$ with $\theta_s$ drawn from the posterior.

    The same weights serve every batch. They are drawn one after the other, so that memory does not grow with their
    number.

    Args:
        model_fn: ``model_fn(input, params)`` for one example.
        posterior: Of any structure.
        key: Random key.
        num_samples: Draws $S$.

    Raises:
        ValueError: If ``num_samples`` is below one.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples={num_samples}: a sampled predictive takes at least one draw.")
    model = as_jit_argument(with_fast_convolutions(model_fn))

    @full_precision
    def run(inputs: Any) -> Array:
        first = _forward(model, _draw(posterior, key, 0), inputs)
        samples = jnp.zeros((num_samples, *first.shape), first.dtype).at[0].set(first)
        for i in range(1, num_samples):
            samples = _store(samples, _forward(model, _draw(posterior, key, i), inputs), i)
        return samples

    return run


@full_precision
def moments(samples: Float[Array, "S B *output"]) -> GaussianOutputs:
    """Mean and unbiased covariance of sampled outputs; zero covariance for a single sample."""
    flat = samples.reshape(*samples.shape[:2], -1)
    mean = flat.mean(0)
    centred = flat - mean
    return GaussianOutputs(mean, jnp.einsum("sbc,sbd->bcd", centred, centred) / max(len(flat) - 1, 1))


@jax.jit
def _draw(posterior: Posterior, key: Array, index: Array | int) -> Params:
    flatten, unflatten = flattener(posterior.mean)
    return unflatten(flatten(posterior.mean) + posterior.deviations(jax.random.fold_in(key, index), 1)[0])


@partial(jax.jit, donate_argnums=0)
def _store(samples: Array, one: Array, index: Array | int) -> Array:
    return samples.at[index].set(one)


@jax.jit
def _forward(model_fn: ModelFn, params: Params, inputs: Any) -> Array:
    return jax.vmap(lambda x: model_fn(x, params))(inputs)
