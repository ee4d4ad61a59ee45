"""Searches for hyperparameters, on what a fit has left behind: which one, and what it is given."""

from __future__ import annotations

import dataclasses
import warnings
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bridge.dataloader import read_first
from bridge.fitting import FittedModel, batch_check, checked_passes
from bridge.hyperparameters import in_core
from bridge.joint_tuning import doubts_about, joint, with_noise_by_evidence
from bridge.layer_tuning import refined
from bridge.placement import compiling_for, place_of
from bridge.prediction import mean_probabilities, prediction_from_gaussian
from bridge.predictives import best_link, link_for
from bridge.scores import Score, score_of
from bridge.search import Search
from bridge.state import LaplaceState
from jax_core.data.passes import LoaderPasses
from jax_core.data.trees import get_size
from jax_core.fit import PER_LAYER
from jax_core.likelihoods import Gaussian
from jax_core.operators import Operator
from jax_core.predictive import moments, sampled_predictive
from jax_core.tuning import (
    Report,
    Tuned,
    evidence_loss,
    gradient_descent,
    grid_search,
    held_out_losses,
    maximize_evidence,
)
from jax_core.tuning.evidence import log_det

_STEPS, _STEP_SIZE = 100, 0.1  # laplace-torch's
_STEPS_FROM_SCALAR = 200


def tune(la: LaplaceState, search: Search) -> Tuned:
    """The best hyperparameters by the method of a search.

    Raises:
        ValueError: If data or loss do not fit the model.
    """
    fit, _ = la.fit_result()
    if fit.prior_factor != 1.0:  # searches are about the precision in force
        tuned = _tune(la, fit, search.rescaled(fit.prior_factor))
        return rescaled(tuned, 1 / fit.prior_factor)
    return _tune(la, fit, search)


def _tune(la: LaplaceState, fit: FittedModel, search: Search) -> Tuned:
    batches = None if search.val_loader is None else _held_out(la, fit, search)
    with compiling_for(place_of(fit.params)):
        if search.method in ("marglik", "gradient"):
            return _by_marglik(la, fit, search)
        if search.method == "joint":
            if batches is None and isinstance(fit.loss.likelihood, Gaussian):
                return _regression_by_evidence(la, fit, search)
            link = best_link(fit, search.link_approx or la.link_approx)
            evidence = partial(evidence_precision, la, fit)
            tuned = joint(la, fit, batches, search.grid, link=link, evidence=evidence)
            return refined(la, fit, batches, tuned, link) if search.refines and batches is not None else tuned
        assert batches is not None
        return _by_grid(la, fit, batches, search)


def rescaled(tuned: Tuned, factor: float) -> Tuned:
    """A result with its precisions in another unit."""
    report = tuned.report
    if report is not None:
        report = dataclasses.replace(report, prior_precision=report.prior_precision * factor)
    scaled = {"prior_precision": tuned.prior_precision * factor, "precisions": tuned.precisions * factor}
    return tuned._replace(report=report, **scaled)


def _held_out(la: LaplaceState, fit: FittedModel, search: Search) -> LoaderPasses:
    """Held-out batches, checked before any work where they can be kept."""
    assert search.val_loader is not None
    check = batch_check(fit.traced, fit.loss, fit.layout)
    reader = la.reading.reader(search.to_batch, fit.template)
    _, val_loader = read_first(search.val_loader, reader)
    batches = checked_passes(val_loader, fit.traced, check, la.reading, reader)
    batches.preload()
    return batches


def _by_grid(la: LaplaceState, fit: FittedModel, batches: LoaderPasses, search: Search) -> Tuned:
    link = link_for(search.link_approx or la.link_approx)
    count = search.n_samples or la.n_samples
    score = score_of(search.loss, fit, la.hyperparameters.sigma_noise)
    if search.pred_type == "nn":
        losses = partial(_sampled_losses, la, fit, batches, score, count)
    else:
        curvature = fit.fitted.curvature.rescale(la.hyperparameters.scale)
        how = (link, jax.random.key(la.seed), count)
        finish = prediction_from_gaussian(fit.loss.likelihood, fit.layout, *how, logit_temperature=la.logit_temperature)
        losses = held_out_losses(fit.split.head, fit.params, curvature, fit.for_head(batches), score, finish)
    tuned = grid_search(losses, search.grid)
    report = Report("the loss over a grid", "held-out data", tuned.prior_precision)
    return tuned._replace(report=report)


def _sampled_losses(
    la: LaplaceState, fit: FittedModel, batches: LoaderPasses, score: Score, count: int, precisions: np.ndarray
) -> np.ndarray:
    """What the networks at sampled weights score under each precision."""
    found = []
    for precision in precisions:
        posterior = fit.posterior(float(precision) / fit.prior_factor, la.hyperparameters.scale, la.order)
        sampled = sampled_predictive(fit.split.head, posterior, key=jax.random.key(la.seed), num_samples=count)
        outputs = partial(_averaged, fit, la.logit_temperature)
        parts = [(outputs(sampled(batch.input)), batch.target) for batch in fit.for_head(batches)]
        predictions, target = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
        found.append(float(score(predictions, target)))
    return np.array(found)


def _averaged(fit: FittedModel, logit_temperature: float, samples: jax.Array) -> Any:
    """Predictions in the core's shape from sampled outputs."""
    probabilities = mean_probabilities(type(fit.loss.likelihood), samples, logit_temperature)
    return moments(samples) if probabilities is None else probabilities


def _by_marglik(la: LaplaceState, fit: FittedModel, search: Search) -> Tuned:
    """The largest evidence; where its predictive is worse than the network, that is said."""
    curvature = fit.fitted.curvature.rescale(la.hyperparameters.scale)
    tuned = _by_evidence(la, fit, curvature, search)
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
                f"worse than the network's: on training samples {doubts.chosen:.3g} nats a sample against "
                f"{doubts.network:.3g}, both with what a network gains on data it was trained on taken off. Leave out "
                "method=, or give held-out data as val_loader=.",
                stacklevel=5,
            )
    return tuned._replace(report=report)


def evidence_precision(la: LaplaceState, fit: FittedModel) -> float:
    """Where the evidence of a scalar precision is largest; an optimum at an edge will do here."""
    curvature = fit.fitted.curvature.rescale(la.hyperparameters.scale)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(_by_evidence(la, fit, curvature, Search(method="marglik", progress=False)).prior_precision)


def _regression_by_evidence(la: LaplaceState, fit: FittedModel, search: Search) -> Tuned:
    """Precision and noise by the evidence; noise per output stays as it is."""
    if not isinstance(la.hyperparameters.sigma_noise, float | int):
        return _by_marglik(la, fit, search)
    unit = fit.fitted.curvature.rescale(1 / la.temperature)
    return with_noise_by_evidence(fit, log_det(unit), _squared_norm(fit, la.core_prior_mean))


def _squared_norm(fit: FittedModel, prior_mean: Any) -> float:
    flat = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(fit.params)])
    return float(jnp.sum((flat - prior_mean) ** 2))


def _by_evidence(la: LaplaceState, fit: FittedModel, curvature: Operator, search: Search) -> Tuned:
    """The largest evidence: exact for one precision, otherwise by gradient ascent, from there if from nowhere else."""
    if not search.climbs:
        return _by_evidence_exactly(la, fit, curvature)
    if search.prior_structure == "diag" and la.options.structure in PER_LAYER:
        raise ValueError(
            f"prior_structure='diag' does not go with hessian_structure={la.options.structure!r}, which takes one "
            "prior precision for each layer at most. Choose 'layerwise' or 'scalar'."
        )
    start = search.init_prior_prec
    if not search.says_how:
        with warnings.catch_warnings():  # a maximum at an edge will do to start from
            warnings.simplefilter("ignore")
            start = _by_evidence_exactly(la, fit, curvature).prior_precision
    given = la.checked_prior(1.0 if start is None else start)
    if isinstance(given, float | int) and search.prior_structure != "scalar":
        given = np.full(len(la.order.names) if search.prior_structure == "layerwise" else la.order.size, float(given))
    loss = evidence_loss(curvature, fit.params, prior_mean=la.core_prior_mean)
    begin = in_core(given, la.order.to_core)
    steps = search.n_steps or (_STEPS if search.says_how else _STEPS_FROM_SCALAR)
    found = gradient_descent(loss, begin, steps=steps, step_size=search.lr or _STEP_SIZE, progress=search.progress)
    if not search.says_how:
        return found
    end = found.precisions[-1]  # of the ascent as it was asked for, where laplace-torch's ends
    return found._replace(prior_precision=float(end) if end.ndim == 0 else end, loss=float(found.losses[-1]))


def _by_evidence_exactly(la: LaplaceState, fit: FittedModel, curvature: Operator) -> Tuned:
    return maximize_evidence(log_det(curvature), get_size(fit.params), _squared_norm(fit, la.core_prior_mean))
