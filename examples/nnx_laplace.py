"""Laplace around a flax.nnx model, on `jax_core` alone: every step that `bridge.Laplace` takes for a torch user."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from nnx_models import as_params, nnx_function

from jax_core import (
    Categorical,
    FitOptions,
    LoaderPasses,
    Posterior,
    fit_curvature,
    linearized_predictive,
    probit,
)


def fit_nnx_laplace(
    name: str,
    weights: Mapping[str, np.ndarray],
    images: np.ndarray,
    labels: np.ndarray,
    *,
    num_total_samples: int,
    prior_precision: float,
    options: FitOptions,
    batch_size: int = 128,
) -> Callable[[np.ndarray], np.ndarray]:
    """Fit a low-rank posterior and return the function from images `(B, 28, 28, 1)` to probabilities `(B, C)`."""
    model_fn, params = nnx_function(name), as_params(weights)

    # 1. the curvature of the loss over the data, reduced to its leading eigenpairs
    starts = range(0, len(labels), batch_size)
    loader = [(images[i : i + batch_size], labels[i : i + batch_size]) for i in starts]
    passes = LoaderPasses(loader)
    passes.preload()
    fitted = fit_curvature(
        model_fn,
        params,
        Categorical(),
        passes,
        options,
        key=jax.random.key(0),
        num_total_samples=num_total_samples,
    )

    # 2. the posterior, and its push through the linearised network
    posterior = Posterior.create(params, fitted.curvature, jnp.asarray(prior_precision))
    predictive = linearized_predictive(model_fn, posterior)

    def predict(batch: np.ndarray) -> np.ndarray:
        outputs = predictive(jnp.asarray(batch))
        return np.array(probit(outputs.mean, outputs.covariance))

    return predict
