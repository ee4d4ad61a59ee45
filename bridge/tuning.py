"""Searches for hyperparameters, on what a fit has left behind: which one, and what it is given."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from bridge.dataloader import ToBatch, read_first
from bridge.fitting import FittedModel, batch_check, checked_passes
from bridge.joint_tuning import doubts_about, joint, with_noise_by_evidence
from bridge.options import one_of
from bridge.placement import compiling_for, place_of
from bridge.prediction import prediction_from_gaussian
from bridge.predictives import link_for
from bridge.state import LaplaceState
from jax_core.data.batches import Batch
from jax_core.data.trees import get_size
from jax_core.frozen import FeaturePasses
from jax_core.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from jax_core.operators import Operator
from jax_core.predictive import GaussianOutputs
from jax_core.tuning import (
    Objective,
    Report,
    Score,
    Tuned,
    evidence_loss,
    gradient_descent,
    grid_search,
    held_out_losses,
    maximize_evidence,
    objective_by_name,
)
from jax_core.tuning.evidence import log_det

TuningMethod: TypeAlias = Literal["joint", "marglik", "gridsearch"]


def chosen_method(
    method: TuningMethod | None, likelihood: Likelihood, objective: Any, *, val_loader: Any, grid: Any, layerwise: bool
) -> TuningMethod:
    """The method asked for, or the best that the arguments allow; arguments that it would not look at are refused.

    Raises:
        ValueError: Naming what goes with what.
    """
    dense = isinstance(likelihood, Categorical | Bernoulli | Gaussian)
    if method is None:
        if val_loader is None:
            method = "joint" if dense and not layerwise else "marglik"
        else:
            method = "joint" if objective == "nll" else "gridsearch"
    one_of("method", method, TuningMethod)
    if method == "marglik" and (val_loader is not None or grid is not None):
        raise ValueError("method='marglik' takes neither val_loader nor grid. Choose method='gridsearch' for those.")
    if method == "gridsearch" and (val_loader is None or layerwise):
        raise ValueError("method='gridsearch' needs val_loader= and finds one precision for all layers.")
    if method == "joint":
        _check_joint(likelihood, objective, layerwise=layerwise, dense=dense)
    return method


def _check_joint(likelihood: Likelihood, objective: Any, *, layerwise: bool, dense: bool) -> None:
    if objective != "nll" or layerwise:
        raise ValueError(
            "method='joint' minimises the negative log-likelihood with one precision for all layers. For another "
            "objective choose method='gridsearch', for layerwise=True method='marglik'."
        )
    if not dense:
        raise ValueError(
            f"The likelihood {type(likelihood).__name__} has no predictive density to tune by. Use method='marglik', "
            "or pass objective=, a function (predictions, targets) -> loss, beside val_loader=."
        )


def tune(
    la: LaplaceState,
    method: TuningMethod,
    val_loader: Iterable[Any] | None,
    objective: Objective | Score,
    grid: Any,
    *,
    layerwise: bool,
    to_batch: ToBatch | None,
) -> Tuned:
    """The best hyperparameters by one of the methods.

    Raises:
        ValueError: If data or objective do not fit the model.
    """
    fit, _ = la.fit_result()
    batches = None if val_loader is None else _held_out(la, fit, val_loader, to_batch)
    with compiling_for(place_of(fit.params)):
        if method == "marglik":
            return _by_marglik(la, fit, layerwise=layerwise)
        if method == "joint":
            if batches is None and isinstance(fit.loss.likelihood, Gaussian):
                return _regression_by_evidence(la, fit)
            return joint(la, fit, batches, grid, evidence=partial(evidence_precision, la, fit))
        assert batches is not None
        return _by_grid(la, fit, batches, objective, grid)


def _held_out(
    la: LaplaceState, fit: FittedModel, val_loader: Iterable[Any], to_batch: ToBatch | None
) -> Iterable[Batch]:
    """Held-out batches for the head of a model, checked before any work where they can be kept."""
    check = batch_check(fit.traced, fit.loss, fit.layout)
    reader = la.reading.reader(to_batch, fit.template)
    _, val_loader = read_first(val_loader, reader)
    batches = checked_passes(val_loader, fit.traced, check, la.reading, reader)
    batches.preload()
    trunk = fit.split.trunk
    return batches if trunk is None else FeaturePasses(trunk, batches)


def _by_grid(
    la: LaplaceState, fit: FittedModel, batches: Iterable[Batch], objective: Objective | Score, grid: Any
) -> Tuned:
    curvature = fit.fitted.curvature.rescale(la.hyperparameters.scale)
    link = (link_for(la.link_approx), jax.random.key(la.seed), la.n_samples)
    finish = prediction_from_gaussian(fit.loss.likelihood, fit.layout, *link, logit_temperature=la.logit_temperature)
    score = _score_of(objective, fit, la.hyperparameters.sigma_noise)
    losses = held_out_losses(fit.split.head, fit.params, curvature, batches, score, finish)
    tuned = grid_search(losses, grid)
    report = Report("the objective over a grid", "held-out data", tuned.prior_precision)
    return tuned._replace(report=report)


def _by_marglik(la: LaplaceState, fit: FittedModel, *, layerwise: bool) -> Tuned:
    """The largest evidence; where its predictive is worse than the network, that is said."""
    curvature = fit.fitted.curvature.rescale(la.hyperparameters.scale)
    tuned = _by_evidence(fit, curvature, la.core_prior_mean, layerwise=layerwise, progress=la.options.progress)
    if isinstance(tuned.prior_precision, np.ndarray):
        to_torch = la.order.to_torch
        tuned = tuned._replace(prior_precision=to_torch(tuned.prior_precision), precisions=to_torch(tuned.precisions))
    report = Report("the evidence", "the training data", tuned.prior_precision)
    doubts = doubts_about(la, fit, tuned.prior_precision)
    if doubts is not None:
        report = dataclasses.replace(report, chosen=doubts.chosen, network=doubts.network)
        if doubts.chosen > doubts.network:
            warnings.warn(
                f"The evidence is largest at prior_precision={tuned.prior_precision:.3g}, and predictions under it are "
                f"worse than the network's: on training batches {doubts.chosen:.3g} nats a sample against "
                f"{doubts.network:.3g}, both with what a network gains on data it was trained on taken off. Leave out "
                "method=, or give held-out data as val_loader=.",
                stacklevel=4,
            )
    return tuned._replace(report=report)


def evidence_precision(la: LaplaceState, fit: FittedModel) -> float:
    """Where the evidence of a scalar precision is largest; an optimum at an edge will do here."""
    curvature = fit.fitted.curvature.rescale(la.hyperparameters.scale)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(_by_evidence(fit, curvature, la.core_prior_mean, layerwise=False, progress=False).prior_precision)


def _regression_by_evidence(la: LaplaceState, fit: FittedModel) -> Tuned:
    """Precision and noise by the evidence; noise per output stays as it is."""
    if not isinstance(la.hyperparameters.sigma_noise, float | int):
        return _by_marglik(la, fit, layerwise=False)
    unit = fit.fitted.curvature.rescale(1 / la.temperature)
    return with_noise_by_evidence(fit, log_det(unit), _squared_norm(fit, la.core_prior_mean))


def _squared_norm(fit: FittedModel, prior_mean: Any) -> float:
    flat = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(fit.params)])
    return float(jnp.sum((flat - prior_mean) ** 2))


def _by_evidence(fit: FittedModel, curvature: Operator, prior_mean: Any, *, layerwise: bool, progress: bool) -> Tuned:
    """The largest evidence: exact for one precision, by gradient ascent from there for one per layer."""
    squared_norm = _squared_norm(fit, prior_mean)
    tuned = maximize_evidence(log_det(curvature), get_size(fit.params), squared_norm)
    if not layerwise:
        return tuned
    loss = evidence_loss(curvature, fit.params, prior_mean=prior_mean)
    leaves = jax.tree.leaves(fit.params)
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
