"""Gaussian marginals of held-out outputs for a whole grid of prior precisions, from one pass of Jacobians."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_core.operators import Operator
from jax_core.predictive import GaussianOutputs
from jax_core.tuning.held_out import predictions_on_grid
from jax_core.types import ModelFn, Params, pytree

_BYTES = 2**28  # of covariances held at a time


class Marginals(NamedTuple):
    r"""$\mathcal N(m, V_t)$ of single positions, of ``K`` outputs that belong together, under ``T`` priors.

    A classifier's position has its classes; several labels and a regression have one output a position.

    Attributes:
        mean: The network's outputs.
        covariance: Under each prior precision.
    """

    mean: Float[Array, "N K"]
    covariance: Float[Array, "N T K K"]


def marginals_on_grid(
    model_fn: ModelFn, mean: Params, curvature: Operator, precisions: Float[np.ndarray, " T"], *, together: int
) -> Callable[[Any], Iterator[Marginals]]:
    """Make the function from a batch of inputs to the marginals of its positions, some examples at a time.

    Args:
        model_fn: For one example.
        mean: The parameters.
        curvature: Scaled by noise and temperature.
        precisions: Scalar ones.
        together: Outputs that belong together, consecutive among an example's flattened ones.

    Returns:
        ``inputs -> marginals, marginals, ...``, a position after the other, example after example.
    """
    predict = predictions_on_grid(model_fn, mean, curvature, precisions, _Own(together))

    def run(inputs: Any) -> Iterator[Marginals]:
        leaves = jax.tree.leaves(inputs)
        one = jax.eval_shape(model_fn, jax.tree.map(lambda leaf: leaf[0], inputs), mean)
        # the covariance of one example's outputs is there as a whole before its blocks are cut out of it
        step = max(1, _BYTES // (4 * len(precisions) * math.prod(one.shape) ** 2))
        for start in range(0, leaves[0].shape[0], step):
            part = jax.tree.map(lambda leaf, at=start: leaf[at : at + step], inputs)
            centre, covariance = predict(part)  # (b, T, positions, K), (b, T, positions, K, K)
            blocks = jnp.moveaxis(covariance, 1, 2)
            yield Marginals(centre[:, 0].reshape(-1, together), blocks.reshape(-1, *blocks.shape[2:]))

    return run


@pytree
@dataclass(frozen=True)
class _Own:
    """Each position's own outputs: two of one size are equal, so that the next search needs no new program."""

    together: int = field(metadata={"static": True})

    def __call__(self, outputs: GaussianOutputs) -> tuple[Array, Array]:
        """Mean ``(b, positions, K)`` and each position's own block ``(b, positions, K, K)`` of the covariance."""
        batch, size = outputs.mean.shape
        together, positions = self.together, size // self.together
        blocks = outputs.covariance.reshape(batch, positions, together, positions, together)
        own = jnp.moveaxis(jnp.diagonal(blocks, axis1=1, axis2=3), -1, 1)
        return outputs.mean.reshape(batch, positions, together), own
