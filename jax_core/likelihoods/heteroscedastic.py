"""Regression by a network that also says how noisy each target is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_core.likelihoods.base import EachOutputAlone, Outputs, like, per_sample
from jax_core.types import pytree


@pytree
@dataclass(frozen=True)
class Heteroscedastic(EachOutputAlone):
    r"""Means and log-variances as outputs (Nix and Weigend, 1994, doi:10.1109/ICNN.1994.374138).

    The last axis of the outputs holds means $\mu$, then as many logarithms $s$ of variances:
    $\tfrac12 [(y - \mu)^2 e^{-s} + s + \log 2\pi]$ with $H = \operatorname{diag}(e^{-s}, \tfrac12)$, the expectation of
    the Hessian over $y$, as in natural gradients: the Hessian at a target is indefinite.
    """

    def nll(self, outputs: Outputs, target: Any) -> Float[Array, " B"]:
        """See :meth:`Likelihood.nll`."""
        mean, log_variance = parts(outputs)
        squared = jnp.square(mean - like(target, mean)) * jnp.exp(-log_variance)
        return per_sample(0.5 * (squared + log_variance + math.log(2 * math.pi)))

    def hessian_mv(self, outputs: Outputs, target: Any, vector: Outputs) -> Outputs:
        """See :meth:`Likelihood.hessian_mv`."""
        precision = jnp.exp(-parts(outputs)[1])
        return vector * jnp.concatenate([precision, jnp.full_like(precision, 0.5)], axis=-1)

    def sample(self, key: Array, outputs: Outputs) -> Array:
        """See :meth:`Likelihood.sample`."""
        mean, log_variance = parts(outputs)
        return mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape, mean.dtype)


def parts(outputs: Outputs) -> tuple[Array, Array]:
    """Means and log-variances.

    Raises:
        ValueError: If the last axis cannot be halved.
    """
    if outputs.ndim < 2 or outputs.shape[-1] % 2:
        raise ValueError(
            f"Outputs of shape {outputs.shape}: a heteroscedastic regression has a mean and a log-variance for each "
            "target, an even number on the last axis."
        )
    mean, log_variance = jnp.split(outputs, 2, axis=-1)
    return mean, log_variance
