"""The tables that a search for a pair looks at, from one pass over some batches."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_core.data.batches import Batch
from jax_core.operators import Operator
from jax_core.tuning.families import Family, LabelFamily
from jax_core.tuning.joint import Table, fit_temperature, loss_table, scaled_losses, sharpest_temperature
from jax_core.tuning.marginals import Marginals, marginals_on_grid
from jax_core.tuning.optimism import penalty_table, responses
from jax_core.types import ArrayLike, ModelFn, Params


class Searched(NamedTuple):
    """What a search for a pair chooses by.

    Attributes:
        table: Losses under every pair.
        precisions: Of its rows, ascending.
        temperatures: Of its columns.
        network: Losses of the network as it is, ``(N,)``.
        scaled: Losses of temperature scaling.
        temperature: That of temperature scaling.
    """

    table: Table
    precisions: Float[np.ndarray, " T"]
    temperatures: Float[np.ndarray, " L"]
    network: Float[np.ndarray, " N"]
    scaled: Float[np.ndarray, " N"]
    temperature: float

    def without_sharpest(self) -> Searched:
        """Without the columns below :func:`~jax_core.tuning.joint.sharpest_temperature`."""
        kept = self.temperatures >= sharpest_temperature(self.temperature)
        table = self.table._replace(losses=self.table.losses[..., kept])
        return self._replace(table=table, temperatures=self.temperatures[kept])


def flat_targets(target: ArrayLike, outputs: int) -> Array:
    """One target a position: classes ``(N,)``, or numbers for its ``outputs`` outputs ``(N, K)``."""
    target = jnp.asarray(target)
    return target.reshape(-1, outputs) if jnp.issubdtype(target.dtype, jnp.inexact) else target.reshape(-1)


def parts_with_targets(
    model_fn: ModelFn,
    mean: Params,
    curvature: Operator,
    batches: Iterable[Batch],
    precisions: Float[np.ndarray, " T"],
    together: int,
) -> Iterable[tuple[Marginals, Array]]:
    """Marginals of all positions, some examples at a time, and their targets."""
    run = marginals_on_grid(model_fn, mean, curvature, precisions, together=together)
    for batch in batches:
        target, start = flat_targets(batch.target, together), 0
        for part in run(batch.input):
            count = part.mean.shape[0]
            yield part, target[start : start + count]
            start += count


def held_out_search(
    model_fn: ModelFn,
    mean: Params,
    curvature: Operator,
    batches: Iterable[Batch],
    family: Family,
    *,
    together: int,
    positions: int,
    precisions: Float[np.ndarray, " T"],
    temperatures: Float[np.ndarray, " L"],
) -> Searched:
    """Losses of held-out samples under every pair; Jacobians are computed once for all.

    Args:
        model_fn: For one example.
        mean: The parameters.
        curvature: Scaled by noise and temperature.
        batches: The held-out data, read once.
        family: Of the likelihood.
        together: Outputs of a position.
        positions: Of an example.
        precisions: To try, ascending.
        temperatures: To try.
    """
    tables, counts, logits, targets = [], [], [], []
    grid = jnp.asarray(temperatures, jnp.result_type(float))
    for part, target in parts_with_targets(model_fn, mean, curvature, batches, precisions, together):
        tables.append(_of_examples(loss_table(family, part, target, grid), positions))
        counts.append(target_counts(family, target, positions))
        logits.append(part.mean)
        targets.append(target)
    table = Table(np.concatenate(tables), np.concatenate(counts))
    _refuse_nothing(table)
    outputs, wanted = jnp.concatenate(logits), jnp.concatenate(targets)
    temperature = fit_temperature(family, outputs, wanted)
    network, scaled = (_of_examples(scaled_losses(family, outputs, wanted, t), positions) for t in (1.0, temperature))
    return Searched(table, precisions, temperatures, network, scaled, temperature)


def penalized_search(
    model_fn: ModelFn,
    mean: Params,
    curvature: Operator,
    batches: Iterable[Batch],
    family: Family,
    *,
    together: int,
    positions: int,
    precisions: Float[np.ndarray, " T"],
    temperatures: Float[np.ndarray, " L"],
    follow: float,
    mean_trace: float,
    mean_nll: float | None = None,
) -> Searched:
    r"""The losses to expect of new samples, from some that the network was trained on: seen losses and a penalty.

    See :mod:`jax_core.tuning.optimism`.

    Args:
        model_fn: For one example.
        mean: The parameters.
        curvature: Scaled by noise and temperature.
        batches: Some of the training data.
        family: Of the likelihood.
        together: Outputs of a position.
        positions: Of an example.
        precisions: To try, ascending.
        temperatures: To try.
        follow: The prior precision that says how outputs follow the targets they were trained on: the evidence's.
        mean_trace: By how much, on average over the positions of all training samples: effective parameters over their
            number.
        mean_nll: What the network loses on all of the training data, a sample; ``None`` if unknown. Some of them may
            be easier: their losses under every pair are corrected by how they go with the network's own (a control
            variate).
    """
    grid = jnp.asarray(temperatures, jnp.result_type(float))
    whole = np.append(precisions, follow)
    found = list(parts_with_targets(model_fn, mean, curvature, batches, whole, together))
    outputs, wanted = (jnp.concatenate(leaves) for leaves in zip(*((p.mean, t) for p, t in found), strict=True))
    seen = family.seen(wanted)
    response = responses(family, outputs, jnp.concatenate([p.covariance[:, -1] for p, _ in found]), seen, mean_trace)
    losses, penalties, start = [], [], 0
    for part, target in found:
        tried = Marginals(part.mean, part.covariance[:, :-1])
        here = response[start : start + part.mean.shape[0]]
        counted = family.seen(target)[:, None, None]
        penalty = jnp.where(counted, penalty_table(family, tried, here, grid), 0.0)
        losses.append(_of_examples(loss_table(family, tried, target, grid), positions))
        penalties.append(_of_examples(penalty, positions))
        start += part.mean.shape[0]
    own = _of_examples(scaled_losses(family, outputs, wanted, 1.0), positions)
    corrected = partial(_controlled, own=own, known=mean_nll)
    tried_losses = corrected(np.concatenate(losses)) + np.concatenate(penalties)
    table = Table(tried_losses, target_counts(family, wanted, positions))
    _refuse_nothing(table)
    trace = _of_examples(jnp.where(seen, jnp.trace(response, axis1=-2, axis2=-1), 0.0), positions)

    def alone(temperature: float) -> np.ndarray:
        scaled = _of_examples(scaled_losses(family, outputs, wanted, temperature), positions)
        return corrected(scaled) + trace / temperature

    fine = np.append(np.geomspace(0.05, 20.0, 200), 1.0)
    temperature = float(fine[int(np.argmin([alone(t).sum() for t in fine]))])
    return Searched(table, precisions, temperatures, alone(1.0), alone(temperature), temperature)


def _controlled(
    values: Float[np.ndarray, "N *K"], *, own: Float[np.ndarray, " N"], known: float | None
) -> Float[np.ndarray, "N *K"]:
    """Values moved to where their mean would be if that of the network's own losses were what it is known to be."""
    spread = own - own.mean()
    square = float(spread @ spread)
    if known is None or not square > 0:
        return values
    finite = np.where(np.isfinite(values), values, 0.0)
    return values + np.tensordot(spread / square, finite, 1) * (known - own.mean())


def _of_examples(values: Array | np.ndarray, positions: int) -> np.ndarray:
    """Sums over an example's positions."""
    array = np.asarray(values, np.float64)
    return array.reshape(-1, positions, *array.shape[1:]).sum(1)


def target_counts(family: Family, target: Array, positions: int) -> np.ndarray:
    """What losses are a mean over: positions with a target, samples where a sample's labels are one target."""
    seen = _of_examples(family.seen(target), positions)
    return seen / positions if isinstance(family, LabelFamily) else seen


def _refuse_nothing(table: Table) -> None:
    if not table.counts.sum():
        raise ValueError("No target of these data counts: all are ignored. Give samples with targets.")
    if not np.isfinite(table.losses).any():
        raise ValueError("No prior precision of the grid has a finite loss. Look at the predictions and the targets.")
