"""Searches for a prior precision, on what a fit has left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from bridge.dataloader import ToBatch, read_first
from bridge.fitting import FittedModel, batch_check, checked_passes
from bridge.options import one_of
from bridge.placement import compiling_for, place_of
from bridge.prediction import prediction_from_gaussian
from bridge.state import LaplaceState
from jax_core.data.trees import get_size
from jax_core.operators import Operator
from jax_core.predictive import GaussianOutputs
from jax_core.tuning import (
    Objective,
    Score,
    Tuned,
    evidence_loss,
    gradient_descent,
    grid_search,
    held_out_losses,
    maximize_evidence,
    objective_by_name,
    spectrum,
)

TuningMethod: TypeAlias = Literal["marglik", "gridsearch"]


def check_arguments(method: TuningMethod, *, val_loader: Any, grid: Any, layerwise: bool) -> None:
    """Refuse an unknown method, and arguments that the method would not look at.

    Raises:
        ValueError: Naming what goes with what.
    """
    one_of("method", method, TuningMethod)
    if method == "marglik" and (val_loader is not None or grid is not None):
        raise ValueError("method='marglik' takes neither val_loader nor grid. Choose method='gridsearch' for those.")
    if method == "gridsearch" and (val_loader is None or layerwise):
        raise ValueError("method='gridsearch' needs val_loader= and finds one precision for all layers.")


def tune(
    la: LaplaceState,
    val_loader: Iterable[Any] | None,
    objective: Objective | Score,
    grid: Any,
    *,
    layerwise: bool,
    to_batch: ToBatch | None,
) -> Tuned:
    """The best prior precision: by the evidence, or on held-out data where they are given.

    Raises:
        ValueError: If data or objective do not fit the model.
    """
    fit, _ = la.fit_result()
    curvature = fit.fitted.curvature.rescale(la.hyperparameters.scale)
    if val_loader is None:
        tuned = _by_evidence(fit, curvature, la.core_prior_mean, layerwise=layerwise, progress=la.options.progress)
        if not isinstance(tuned.prior_precision, np.ndarray):
            return tuned
        to_torch = la.order.to_torch
        return tuned._replace(prior_precision=to_torch(tuned.prior_precision), precisions=to_torch(tuned.precisions))
    link = (la.link_approx, jax.random.key(la.seed), la.n_samples)
    finish = prediction_from_gaussian(fit.loss.likelihood, fit.layout, *link)
    score = _score_of(objective, fit, la.hyperparameters.sigma_noise)
    check = batch_check(fit.traced, fit.loss, fit.layout)
    _, val_loader = read_first(val_loader, to_batch)
    batches = checked_passes(val_loader, fit.traced, check, la.reading, to_batch)
    with compiling_for(place_of(fit.params)):
        losses = held_out_losses(fit.model_fn, fit.params, curvature, batches, score, finish)
        return grid_search(losses, grid)


def _by_evidence(fit: FittedModel, curvature: Operator, prior_mean: Any, *, layerwise: bool, progress: bool) -> Tuned:
    """The largest evidence: exact for one precision, by gradient ascent from there for one per layer."""
    leaves = jax.tree.leaves(fit.params)
    flat = jnp.concatenate([jnp.ravel(leaf) for leaf in leaves])
    squared_norm = float(jnp.sum((flat - prior_mean) ** 2))
    tuned = maximize_evidence(spectrum(curvature), get_size(fit.params), squared_norm)
    if not layerwise:
        return tuned
    loss = evidence_loss(curvature, fit.params, prior_mean=prior_mean)
    return gradient_descent(loss, np.full(len(leaves), tuned.prior_precision), progress=progress)


def _score_of(objective: Objective | Score, fit: FittedModel, sigma_noise: Any) -> Callable[[Any, Any], Any]:
    """A score of predictions in the core's shape; a function of the user's gets them in the model's."""
    layout = fit.layout
    if not callable(objective):
        sigma_noise = sigma_noise if isinstance(sigma_noise, float | int) else sigma_noise.reshape(-1)  # one per output
        return objective_by_name(objective, fit.loss.likelihood, sigma_noise=sigma_noise)

    def score(predictions: Any, target: Any) -> Any:
        if isinstance(predictions, GaussianOutputs):
            return objective(GaussianOutputs(layout.to_model(predictions.mean), predictions.covariance), target)
        return objective(layout.to_model(predictions), target)

    return score
