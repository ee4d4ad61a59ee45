"""What one forward pass over the data adds up, beside the curvature."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_core.data.batches import Batch
from jax_core.likelihoods import Likelihood
from jax_core.types import ModelFn, Params, pytree


@pytree
@dataclass(frozen=True)
class BatchSums:
    """What one batch adds, as arrays that may still be under way: additive over its samples."""

    nll: Float[Array, ""]
    samples: Int[Array, ""]
    outputs: Int[Array, ""]

    @classmethod
    def of(cls, likelihood: Likelihood, outputs: Array, target: Any, count: Array | None = None) -> BatchSums:
        """From the model's outputs on the batch, or on its first ``count`` samples. Traceable."""
        total = outputs.shape[0]
        count = jnp.array(total) if count is None else count
        nll = jnp.where(jnp.arange(total) < count, likelihood.nll(outputs, target), 0.0).sum()
        return cls(nll, count, count * math.prod(outputs.shape[1:]))


class DataSums:
    """Running sums over batches.

    Attributes:
        batch_nll: Negative log-likelihood of each batch.
        samples: Samples seen.
        outputs: Scalar outputs seen.
    """

    def __init__(self) -> None:
        self.batch_nll: list[float] = []
        self.samples, self.outputs = 0, 0

    @property
    def nll(self) -> float:
        """Negative log-likelihood of all."""
        return sum(self.batch_nll)

    @property
    def outputs_per_sample(self) -> int:
        """Scalar outputs of one sample."""
        return self.outputs // max(self.samples, 1)

    def as_array(self) -> Float[np.ndarray, " N"]:
        """All of it in one array."""
        return np.array([self.samples, self.outputs, *self.batch_nll], np.float64)

    def restore(self, array: Float[np.ndarray, " N"]) -> None:
        """Undo :meth:`as_array`."""
        self.samples, self.outputs, self.batch_nll = int(array[0]), int(array[1]), array[2:].tolist()

    def add(self, batch: BatchSums, number: int) -> None:
        """Count a batch, or a part of one.

        Raises:
            FloatingPointError: If its loss is not finite, naming the batch.
        """
        nll = float(batch.nll)
        if not np.isfinite(nll):
            raise FloatingPointError(
                f"The loss of batch {number} is {nll}: the model's outputs there are NaN or infinite, or its "
                "targets do not fit them. Look at that batch, and at the model's weights."
            )
        self.batch_nll += [0.0] * (number + 1 - len(self.batch_nll))
        self.batch_nll[number] += nll
        self.samples += int(batch.samples)
        self.outputs += int(batch.outputs)


@jax.jit
def evaluate(
    model_fn: ModelFn, params: Params, likelihood: Likelihood, batch: Batch, count: Array
) -> tuple[Array, BatchSums]:
    """Outputs of a batch, and the sums of its first ``count`` samples."""
    outputs = jax.vmap(lambda x: model_fn(x, params))(batch.input)
    return outputs, BatchSums.of(likelihood, outputs, batch.target, count)
