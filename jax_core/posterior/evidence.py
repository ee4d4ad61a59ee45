"""The Laplace approximation of the log marginal likelihood (MacKay, 1992, doi:10.1162/neco.1992.4.3.448)."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_core.posterior.posterior import Posterior

Number: TypeAlias = Float[Array, ""] | np.ndarray | np.floating


class Evidence(NamedTuple):
    r"""$\log p(\mathcal D) \approx$ ``fit - (complexity + scatter) / 2``.

    Attributes:
        fit: $\log p(\mathcal D \mid \theta^*)$, summed over the data.
        complexity: $\log\det\Sigma^{-1} - \log\det D$.
        scatter: $(\theta^* - \mu_0)^\top D (\theta^* - \mu_0)$.
    """

    fit: Number
    complexity: Number
    scatter: Number

    @property
    def total(self) -> Number:
        """The log marginal likelihood."""
        return self.fit - 0.5 * (self.complexity + self.scatter)


def log_marginal_likelihood(posterior: Posterior, log_likelihood: Any, *, prior_mean: Any = 0.0) -> Evidence:
    """Evidence of a posterior.

    Args:
        posterior: Of any structure; its temperature must be one for the result to be an evidence.
        log_likelihood: Of the training data at the mean, summed (scaled like the curvature for a subset).
        prior_mean: Of the weights.
    """
    return Evidence(jnp.asarray(log_likelihood), posterior.log_det_ratio(), posterior.scatter(prior_mean))


def gaussian_log_likelihood(squared_error: Any, count: int, sigma_noise: Any) -> Float[Array, ""]:
    r"""$-\tfrac{1}{2\sigma^2}\sum \lVert f - y\rVert^2 - \tfrac n2 \log 2\pi\sigma^2$ from half the squared error.

    Args:
        squared_error: $\tfrac12 \sum \lVert f - y\rVert^2$, the summed ``nll`` of the Gaussian likelihood.
        count: Number of scalar outputs in that sum.
        sigma_noise: Standard deviation of the noise.
    """
    return -squared_error / sigma_noise**2 - 0.5 * count * jnp.log(2 * jnp.pi * sigma_noise**2)
