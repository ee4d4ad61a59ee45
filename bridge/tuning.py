"""Searches for a prior precision, on what a fit has left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from bridge.options import one_of
from bridge.placement import compiling_for, place_of
from jax_core.data.batches import Batch
from jax_core.data.trees import get_size
from jax_core.likelihoods import Likelihood
from jax_core.operators import Operator
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
from jax_core.types import ModelFn, Params

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


def score_of(objective: Objective | Score, likelihood: Likelihood, sigma_noise: float) -> Score:
    """A name or a function as a score."""
    return objective if callable(objective) else objective_by_name(objective, likelihood, sigma_noise=sigma_noise)


@dataclass(frozen=True)
class PriorSearch:
    """A model at its trained parameters and their curvature, scaled by noise and temperature."""

    model_fn: ModelFn
    params: Params
    curvature: Operator

    def by_evidence(self, prior_mean: float, *, layerwise: bool, progress: bool) -> Tuned:
        """The largest evidence: exact for one precision, by gradient ascent from there for one per layer."""
        leaves = jax.tree.leaves(self.params)
        squared_norm = sum(float(jnp.sum((leaf - prior_mean) ** 2)) for leaf in leaves)
        tuned = maximize_evidence(spectrum(self.curvature), get_size(self.params), squared_norm)
        if not layerwise:
            return tuned
        loss = evidence_loss(self.curvature, self.params, prior_mean=prior_mean)
        return gradient_descent(loss, np.full(len(leaves), tuned.prior_precision), progress=progress)

    def by_grid(
        self,
        batches: Iterable[Batch],
        score: Callable[[Any, Any], Any],
        finish: Callable[..., Any],
        grid: Any,
    ) -> Tuned:
        """The smallest score of held-out data over a grid."""
        with compiling_for(place_of(self.params)):
            losses = held_out_losses(self.model_fn, self.params, self.curvature, batches, score, finish)
            return grid_search(losses, grid)
