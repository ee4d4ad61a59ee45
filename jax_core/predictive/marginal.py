"""Variances of single outputs, a few Jacobian rows at a time: for networks with many outputs and many parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from jax_core.gradients.walk import OfBatches
from jax_core.posterior import Posterior
from jax_core.predictive.linearized import GaussianOutputs
from jax_core.types import ModelFn, Params, pytree
from jax_core.xla.compiled import as_jit_argument
from jax_core.xla.convolutions import with_fast_convolutions
from jax_core.xla.precision import full_precision

_ROWS = 8  # outputs whose gradients are held at once


def marginal_predictive(
    model_fn: ModelFn, posterior: Posterior, finish: Callable[[GaussianOutputs], Any] | None = None
) -> OfBatches:
    r"""Make the function from a batch of inputs to means and variances, ``(B, C)`` each, of the linearised network.

    The variances $(J \Sigma J^\top)_{cc}$ are exact; what relates one output to another is not computed, so an example
    takes the memory of eight gradients, where the exact covariance holds one for each output.

    Args:
        model_fn: ``model_fn(input, params)`` for one example.
        posterior: Of any structure.
        finish: Applied to each example's :class:`GaussianOutputs` with a diagonal covariance; a link that looks at
            variances alone (probit, mean field of order 0) gives what it gives for the exact covariance.
    """
    model = as_jit_argument(with_fast_convolutions(model_fn))
    last = as_jit_argument(finish) if finish is not None else Partial(_moments)
    each = _Marginal(model, last, posterior.output_form, posterior.mean)
    return OfBatches(lambda example: each)


@pytree
@dataclass(frozen=True)
class _Marginal:
    """Of one example after the other."""

    model: ModelFn
    finish: Callable[[GaussianOutputs], Any]
    form: Callable[[Array], Array]
    mean: Params

    def piece(self, total: int) -> int:
        """Examples at a time."""
        return 1

    @full_precision
    def __call__(self, inputs: Any) -> Any:
        count = jax.tree.leaves(inputs)[0].shape[0]
        if count == 0:
            raise ValueError("The batch holds no examples. Give at least one.")
        parts = [self._one(jax.tree.map(lambda leaf, i=i: leaf[i], inputs)) for i in range(count)]
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)

    def _one(self, x: Any) -> Any:
        mean = _output(self.model, self.mean, x)
        starts = range(0, mean.size, _ROWS)
        blocks = [_variances(self.model, self.form, self.mean, x, jnp.arange(i, i + _ROWS)) for i in starts]
        return _finish(self.finish, mean, jnp.concatenate(blocks)[: mean.size])


def _moments(outputs: GaussianOutputs) -> tuple[Array, Array]:
    return outputs.mean, jnp.diagonal(outputs.covariance, axis1=-2, axis2=-1)


@jax.jit
def _output(model_fn: ModelFn, params: Params, x: Any) -> Float[Array, " C"]:
    return model_fn(x, params).reshape(-1)


@jax.jit
def _variances(
    model_fn: ModelFn, form: Callable[[Array], Array], params: Params, x: Any, which: Array
) -> Float[Array, " K"]:
    output, pull = jax.vjp(lambda p: model_fn(x, p).reshape(-1), params)

    def row(i: Array) -> Array:
        gradient = pull(jnp.zeros_like(output).at[i].set(1.0, mode="drop"))[0]
        return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(gradient)])

    return jnp.diagonal(form(jax.vmap(row)(which)))


@jax.jit
def _finish(finish: Callable[[GaussianOutputs], Any], mean: Array, variance: Array) -> Any:
    return finish(GaussianOutputs(mean[None], jnp.diag(variance)[None]))
