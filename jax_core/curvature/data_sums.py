"""What one forward pass over the data adds up, beside the curvature."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from jax_core.batches import Batch
from jax_core.likelihoods import Likelihood
from jax_core.types import ModelFn, Params


class DataSums:
    """Running sums over batches.

    Attributes:
        nll: Negative log-likelihood.
        samples: Samples seen.
        outputs_per_sample: Scalar outputs of one.
    """

    def __init__(self) -> None:
        self.nll, self.samples, self.outputs_per_sample = 0.0, 0, 0

    def add(
        self, model_fn: ModelFn, params: Params, likelihood: Likelihood, batch: Batch, number: int
    ) -> Float[Array, "B *output"]:
        """Count a batch and return the model's outputs on it.

        Raises:
            FloatingPointError: If its loss is not finite, naming the batch.
        """
        outputs, nll = evaluate(model_fn, params, likelihood, batch)
        if not np.isfinite(float(nll)):
            raise FloatingPointError(
                f"The loss of batch {number} is {float(nll)}: the model's outputs there are NaN or infinite, or its "
                "targets do not fit them. Look at that batch, and at the model's weights."
            )
        self.nll += float(nll)
        self.samples += outputs.shape[0]
        self.outputs_per_sample = outputs[0].size
        return outputs


@jax.jit
def evaluate(model_fn: ModelFn, params: Params, likelihood: Likelihood, batch: Batch) -> tuple[Any, Float[Array, ""]]:
    """Outputs and summed negative log-likelihood of a batch."""
    outputs = jax.vmap(lambda x: model_fn(x, params))(batch.input)
    return outputs, likelihood.nll(outputs, batch.target).sum()
