"""The sampled predictive: weights drawn from the posterior, each pushed through the network itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from jax_core.data.trees import flattener
from jax_core.posterior import Posterior
from jax_core.predictive.linearized import GaussianOutputs
from jax_core.types import ModelFn, Params
from jax_core.xla.compiled import as_jit_argument
from jax_core.xla.convolutions import with_fast_convolutions
from jax_core.xla.precision import full_precision
from jax_core.xla.pullback import PullBack, with_pullback


@dataclass(frozen=True)
class OfDraws:
    """``finish`` of the outputs ``(S, B, *output)`` for a batch at weights that are drawn one after the other."""

    model: Callable[..., Any]
    posterior: Posterior
    key: Array
    num_samples: int
    finish: Callable[[Float[Array, "S B *output"]], Any]

    @full_precision
    def __call__(self, inputs: Any) -> Any:
        """Of a batch."""
        first = _forward(self.model, self._draw(0), inputs)
        samples = jnp.zeros((self.num_samples, *first.shape), first.dtype).at[0].set(first)
        for i in range(1, self.num_samples):
            samples = _store(samples, _forward(self.model, self._draw(i), inputs), i)
        return self.finish(samples)

    def with_pullback(self, inputs: Any) -> tuple[Any, PullBack]:
        """The same and its pull-back, by programs for one draw; see :func:`~jax_core.xla.pullback.with_pullback`."""
        each = [with_pullback(Partial(_forward, self.model, self._draw(i)), inputs) for i in range(self.num_samples)]
        outputs, after = with_pullback(self.finish, jnp.stack([output for output, _ in each]))

        def pull(cotangents: Any) -> list[Array]:
            (whole,) = after(cotangents)
            parts = [back(whole[i]) for i, (_, back) in enumerate(each)]
            return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *parts)

        return outputs, pull

    def piece(self, inputs: Any) -> int:
        """Examples of which programs are made that differentiate a batch: all."""
        return jax.tree.leaves(inputs)[0].shape[0]

    def _draw(self, index: int) -> Params:
        return _draw(self.posterior, self.key, index)


def sampled_predictive(
    model_fn: ModelFn,
    posterior: Posterior,
    *,
    key: Array,
    num_samples: int,
    finish: Callable[[Float[Array, "S B *output"]], Any] | None = None,
) -> OfDraws:
    r"""Make the function from a batch of inputs to $f_{\theta_s}(x)$ with $\theta_s$ drawn from the posterior.

    The same weights serve every batch. They are drawn one after the other, so that memory does not grow with their
    number.

    Args:
        model_fn: ``model_fn(input, params)`` for one example.
        posterior: Of any structure.
        key: Random key.
        num_samples: Draws $S$.
        finish: Applied to the outputs ``(S, B, *output)`` of a batch. By default they are returned.

    Raises:
        ValueError: If ``num_samples`` is below one.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples={num_samples}: a sampled predictive takes at least one draw.")
    model = as_jit_argument(with_fast_convolutions(model_fn))
    return OfDraws(model, posterior, key, num_samples, as_jit_argument(finish or _unchanged))


def _unchanged(samples: Array) -> Array:
    return samples


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
