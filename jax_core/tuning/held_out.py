"""Losses of held-out data for a whole grid of prior precisions, from one pass of Jacobians."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from jax_core.data.batches import Batch
from jax_core.evaluation import (
    chi_squared,
    expected_calibration_error,
    nll_categorical,
    nll_gaussian,
)
from jax_core.gradients.jacobian_maps import ProjectedJacobians, map_jacobians, map_projected, map_rotated
from jax_core.gradients.subspace import Subspace
from jax_core.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from jax_core.operators import Dense, LowRank, Operator, Projection, Symmetric
from jax_core.operators.projection import combine
from jax_core.posterior import Posterior
from jax_core.predictive import GaussianOutputs
from jax_core.tuning.grouped import GroupedGrid, covariances, is_grouped
from jax_core.types import ModelFn, Params
from jax_core.xla.compiled import as_jit_argument

Objective = Literal["nll", "ece", "chi2"]
Score = Callable[[Any, Array], Any]
"""``(predictions, targets) -> loss``, smaller is better."""


def predictions_on_grid(
    model_fn: ModelFn,
    mean: Params,
    curvature: Operator,
    precisions: Float[np.ndarray, " T"],
    finish: Callable[[GaussianOutputs], Any],
) -> Callable[[Any], Any]:
    """Make the function from a batch of inputs to ``finish`` of the predictive at each scalar prior precision.

    Jacobians, and their products with a low rank's eigenvectors, are computed once for the whole grid.

    Returns:
        ``inputs -> predictions`` with leading axes ``(B, T)``.
    """
    leaves = jax.tree.leaves(mean)
    grid = jnp.asarray(precisions, jnp.result_type(*leaves))
    if is_grouped(curvature) and [part.size for part in curvature.parts] == [jnp.size(leaf) for leaf in leaves]:
        along = Partial(covariances, as_jit_argument(finish))
        prepare = partial(GroupedGrid.of, grid)
        return map_rotated(model_fn, mean, Subspace(curvature.projection()), prepare, along)
    if isinstance(curvature, Symmetric):  # one decomposition for the whole grid
        curvature = curvature.eigenpairs
    last = Partial(_on_grid, as_jit_argument(finish), curvature, grid)
    if isinstance(curvature, LowRank):
        raw = Projection(None, jnp.ones((), grid.dtype), curvature.U, jnp.ones((), grid.dtype))
        return map_projected(model_fn, mean, Subspace(raw), last)
    if isinstance(curvature, Dense):
        raw = Projection(None, None, curvature.eigenvectors, jnp.ones((), grid.dtype))
        return map_projected(model_fn, mean, Subspace(raw), last)
    return map_jacobians(model_fn, mean, last)


def _on_grid(finish: Any, curvature: Operator, grid: Array, outputs: Array, rows: Array | ProjectedJacobians) -> Any:
    def at(precision: Array) -> Any:
        posterior = Posterior.create(None, curvature, precision)  # the covariance of outputs needs no mean
        if isinstance(rows, ProjectedJacobians):
            found = posterior.projection  # its columns are those that the rows have met, its weight a number or none
            gram = None if found.weights is None or rows.gram is None else found.weights * rows.gram
            return finish(GaussianOutputs(outputs, combine(found.values, rows.inner, gram)))
        return finish(GaussianOutputs(outputs, posterior.output_covariance(rows)))

    return jax.vmap(at, out_axes=1)(grid)


def held_out_losses(
    model_fn: ModelFn,
    mean: Params,
    curvature: Operator,
    batches: Iterable[Batch],
    score: Score,
    finish: Callable[[GaussianOutputs], Any],
) -> Callable[[np.ndarray], np.ndarray]:
    """Make the function from prior precisions to the score of held-out data under each, for ``grid_search``.

    Args:
        model_fn: For one example.
        mean: The parameters.
        curvature: Scaled by noise and temperature.
        batches: The held-out data, read once a call.
        score: Of the predictions ``(N, ...)`` and targets ``(N, ...)`` of all data.
        finish: From Gaussian outputs to predictions, a link for instance.
    """

    def losses(precisions: np.ndarray) -> np.ndarray:
        predict = predictions_on_grid(model_fn, mean, curvature, precisions, finish)
        predictions, targets = [], []
        for batch in batches:
            predictions.append(predict(batch.input))
            targets.append(np.asarray(batch.target))
        joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *predictions)  # (N, T, ...)
        target = jnp.asarray(np.concatenate(targets))
        one = [jax.tree.map(lambda leaf, t=t: leaf[:, t], joined) for t in range(len(precisions))]
        return np.array([float(score(prediction, target)) for prediction in one])

    return losses


def objective_by_name(name: Objective, likelihood: Likelihood, *, sigma_noise: float = 1.0) -> Score:
    r"""A score of held-out predictions; for regression the noise $\sigma^2$ is added to the function's variance.

    ``"nll"`` is the mean negative log-likelihood, ``"ece"`` the expected calibration error with 15 bins
    (classification), ``"chi2"`` the distance of the mean squared standardised residual from one (regression).

    Raises:
        ValueError: For an unknown name, or one that does not go with the likelihood.
    """
    gaussian = isinstance(likelihood, Gaussian)
    if name == "nll" and isinstance(likelihood, Categorical):
        return partial(_nll_counted, likelihood.ignore_index)
    if name == "nll" and isinstance(likelihood, Bernoulli):
        return _nll_bernoulli
    if name == "nll" and gaussian:
        return lambda outputs, target: nll_gaussian(*_moments(outputs, sigma_noise), target.reshape(outputs[0].shape))
    if name == "chi2" and gaussian:
        return lambda outputs, target: abs(
            chi_squared(*_moments(outputs, sigma_noise), target.reshape(outputs[0].shape)) - 1
        )
    if name == "ece" and isinstance(likelihood, Categorical):
        return partial(_calibration_error, likelihood.ignore_index)
    raise ValueError(
        f"The objective {name!r} does not go with {type(likelihood).__name__}. Choose 'nll', for classification also "
        "'ece', for regression also 'chi2', or pass a score."
    )


def _moments(outputs: GaussianOutputs, sigma_noise: float) -> tuple[Array, Array]:
    mean, covariance = outputs
    return mean, jnp.sqrt(jnp.diagonal(covariance, axis1=-2, axis2=-1) + sigma_noise**2)


def _nll_bernoulli(prob: Array, target: Array) -> Array:
    positive = target.reshape(prob.shape).astype(prob.dtype)
    chosen = positive * jnp.log(prob) + (1 - positive) * jnp.log1p(-prob)
    return -jnp.where(jnp.isnan(chosen), 0.0, chosen).sum(-1).mean()


def _counted(ignore_index: int | None, prob: Array, target: Array) -> tuple[Array, Array]:
    """Probabilities ``(N, C)`` and classes ``(N,)`` of the positions that are not ignored."""
    if ignore_index is None or jnp.issubdtype(target.dtype, jnp.inexact):
        return prob, target
    target = target.astype(jnp.int32)
    seen = target != ignore_index
    return (prob, target) if bool(seen.all()) else (prob[seen], target[seen])


def _nll_counted(ignore_index: int | None, prob: Array, target: Array) -> Array:
    return nll_categorical(*_counted(ignore_index, prob, target))


def _calibration_error(ignore_index: int | None, prob: Array, target: Array) -> Array:
    prob, target = _counted(ignore_index, prob, target)
    correct = prob.argmax(-1) == target
    return expected_calibration_error(prob.max(-1).reshape(-1), correct.reshape(-1), num_bins=15)
