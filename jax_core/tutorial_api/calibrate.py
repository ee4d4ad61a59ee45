"""One-call tuning of a prior precision: a metric of the predictions under each of a grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_core.data.batches import as_batch, pieces
from jax_core.tuning import grid_search, log_grid
from jax_core.tutorial_api.evaluate import entries_for
from jax_core.tutorial_api.metrics import chi_squared_zero
from jax_core.types import Data


def evaluate_for_given_prior_arguments(
    *,
    data: Data,
    set_prob_predictive: Callable[..., Callable[[Any], Mapping[str, Array]]],
    metric: Callable[..., Float[Array, ""]] = chi_squared_zero,
    batch_size: int = 256,
    **prior: Any,
) -> Float[Array, ""]:
    """A metric of the predictions of a data set under one prior. Traceable: compile it once for all priors of a grid.

    Args:
        data: A mapping with `input` and `target`, or such a pair, of at least one sample.
        set_prob_predictive: Makes the predictive of one sample from a prior: `set_lin_pushforward` or
            `set_nonlin_pushforward` with all but `prior_arguments` given, by `functools.partial`.
        metric: Of all predictions together; it gets the entries of the predictive, and the `target`, of the names that
            its signature has. Smaller is better.
        batch_size: Samples that are worked on at once.
        **prior: For `set_prob_predictive`, above all `prior_arguments`.

    Raises:
        KeyError: If the metric needs an entry that the predictive does not make.
    """
    predict = jax.vmap(set_prob_predictive(**prior))
    batch = jax.tree.map(jnp.asarray, as_batch(data))
    parts = [{**predict(part.input), "target": part.target} for part in pieces(batch, batch_size)]
    entries = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    return metric(**entries_for(metric, entries))


def optimize_prior_prec(
    objective: Callable[[Mapping[str, Any]], Any],
    log_prior_prec_min: float = -5.0,
    log_prior_prec_max: float = 6.0,
    grid_size: int = 300,
    *,
    patience: int | None = None,
) -> float:
    """The prior precision of a grid, even in its logarithm, with the smallest objective.

    Args:
        objective: Of `{"prior_prec": precision}`; for instance `evaluate_for_given_prior_arguments`, under `jax.jit`.
        log_prior_prec_min: The exponent to base ten of the smallest precision.
        log_prior_prec_max: That of the largest.
        grid_size: Precisions to try.
        patience: After how many increases in a row the search up the grid ends; by default all are tried.

    Raises:
        ValueError: If the grid is empty, or no objective is finite.

    Warns:
        UserWarning: If the smallest objective lies at an edge of the grid.
    """

    def losses(precisions: np.ndarray) -> np.ndarray:
        found = np.full(len(precisions), np.inf)
        worse = 0
        for i, precision in enumerate(precisions):
            found[i] = float(objective({"prior_prec": precision}))
            worse = worse + 1 if i and found[i] > found[i - 1] else 0
            if patience is not None and worse >= patience:
                break
        return found

    grid = log_grid(10.0**log_prior_prec_min, 10.0**log_prior_prec_max, grid_size)
    return float(grid_search(losses, grid).prior_precision)
