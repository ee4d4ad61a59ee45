r"""Prior precision and logit temperature together, on held-out data.

The predictive of logits is $\mathcal N(f / T, \Sigma_\tau / T^2)$, pushed through the link. Temperature scaling (Guo
et al., 2017, arXiv:1706.04599) is its limit $\tau \to \infty$, so that a search over both cannot lose to it on the data
it searches on.

Among the pairs that do as well as can be told, the one with the most uncertainty is taken: it costs nothing on data
like those held out, and pays on data that are not.

Logits are not divided by less than a quarter of what temperature scaling alone would take, or of one. Below, the
mean-field link only looks at the ratio of mean and deviation: its losses are as good, but those of an average over
samples of the logits, which are then nearly one-hot, were 1.4 times temperature scaling's on ten networks of digits,
and 1.2 times at a quarter.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import Array, Float

from jax_core.tuning.families import Family
from jax_core.tuning.marginals import Marginals
from jax_core.xla.precision import full_precision

NO_UNCERTAINTY = 1e12
"""A prior precision under which the weights do not move; the limit of temperature scaling alone."""
Z_95 = 1.645
"""A one-sided test at five per cent."""


def default_precisions() -> np.ndarray:
    """Seventy-three from 0.1 to 1e5, evenly in their logarithm."""
    return np.geomspace(1e-1, 1e5, 73)


def default_temperatures() -> np.ndarray:
    """Fourteen around one, by factors of the square root of two."""
    return 2.0 ** np.arange(-3.0, 4.0, 0.5)


def sharpest_temperature(scaling: float) -> float:
    """The lowest temperature of logits that is taken, given that of temperature scaling alone."""
    return 0.25 * min(1.0, scaling)


class Table(NamedTuple):
    """Losses of held-out samples under every pair.

    Attributes:
        losses: Summed over a sample's positions.
        counts: Its positions with a target.
    """

    losses: Float[np.ndarray, "N T L"]
    counts: Float[np.ndarray, " N"]


class Choice(NamedTuple):
    """A pair, and the mean losses it was chosen by.

    Attributes:
        precision: ``inf`` stands for no uncertainty.
        temperature: Of the logits.
        loss: Of the pair.
        best: The smallest loss of all pairs.
    """

    precision: float
    temperature: float
    loss: float
    best: float


@full_precision
def loss_table(family: Family, marginals: Marginals, target: Array, temperatures: Array) -> Float[Array, "N T L"]:
    """The loss of each position under each prior precision and temperature."""
    return _loss_table(family, marginals, target, temperatures)


@jax.jit
def _loss_table(family: Family, marginals: Marginals, target: Array, temperatures: Array) -> Float[Array, "N T L"]:
    def at(temperature: Array) -> Array:
        def under(covariance: Array) -> Array:
            return family.nll(family.natural(marginals.mean / temperature, covariance / temperature**2), target)

        return jax.vmap(under, 1, 1)(marginals.covariance)

    return jnp.moveaxis(jax.lax.map(at, temperatures), 0, -1)


def scaled_losses(family: Family, logits: Array, target: Array, temperature: float) -> Float[np.ndarray, " N"]:
    """The loss of each position under temperature scaling alone; at one, that of the network."""
    return np.asarray(_scaled(family, logits, target, temperature), np.float64)


@jax.jit
def _scaled(family: Family, logits: Array, target: Array, temperature: float | Array) -> Array:
    return family.nll(logits / temperature, target)  # without uncertainty logits are natural parameters


def fit_temperature(family: Family, logits: Array, target: Array) -> float:
    """The temperature of the smallest loss without any uncertainty, between 0.01 and 100.

    The loss is convex in the inverse temperature, so that a one-dimensional search finds it.
    """

    def loss(log_inverse: float) -> float:
        return float(_scaled(family, logits, target, np.exp(-log_inverse)).sum())

    bounds = (-np.log(100.0), np.log(100.0))
    found: Any = scipy.optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-5})
    better = float(found.x) if found.fun < loss(0.0) else 0.0
    return float(np.exp(-better))


def mean_and_error(losses: Float[np.ndarray, "N *K"], counts: Float[np.ndarray, " N"]) -> tuple[np.ndarray, np.ndarray]:
    """The mean over positions, and its standard error with samples as the units."""
    total = counts.sum()
    mean = np.asarray(losses.sum(0) / total)
    weights = counts.reshape(-1, *(1,) * (losses.ndim - 1))
    return mean, np.asarray(np.sqrt(((losses - weights * mean) ** 2).sum(0)) / total)


def most_uncertain(
    table: Table,
    scaled: Float[np.ndarray, " N"],
    precisions: Float[np.ndarray, " T"],
    temperatures: Float[np.ndarray, " L"],
    temperature: float,
    *,
    z: float = Z_95,
) -> Choice:
    """The smallest precision whose best temperature is not worse than the best pair, by a paired test.

    Nor may its mean loss be above that of temperature scaling alone. With no such pair, temperature scaling it is.

    Args:
        table: Of all pairs.
        scaled: Losses of temperature scaling, a sample's positions summed.
        precisions: In ascending order.
        temperatures: Of the logits.
        temperature: That of temperature scaling.
        z: Standard errors of the difference that still count as no difference; zero takes the best.
    """
    means = table.losses.sum(0) / table.counts.sum()
    alone = float(scaled.sum() / table.counts.sum())
    finite = np.where(np.isfinite(means), means, np.inf)
    row, column = np.unravel_index(int(finite.argmin()), finite.shape)
    best, reference = float(finite[row, column]), table.losses[:, row, column]
    if alone < best:
        best, reference = alone, scaled
    for t, per_temperature in enumerate(finite):
        at = int(per_temperature.argmin())
        loss = float(per_temperature[at])
        if loss > alone:
            continue
        worse, error = mean_and_error(table.losses[:, t, at] - reference, table.counts)
        if worse <= z * error + 1e-12:
            return Choice(float(precisions[t]), float(temperatures[at]), loss, best)
    return Choice(np.inf, temperature, alone, best)


def most_uncertain_within(
    table: Table,
    scaled: Float[np.ndarray, " N"],
    precisions: Float[np.ndarray, " T"],
    temperatures: Float[np.ndarray, " L"],
    temperature: float,
    *,
    slack: float,
) -> Choice:
    """The smallest precision whose best temperature loses at most so much to the best of all.

    For losses that are estimates from training data, of which the differences between samples say little about their
    error. A network that has fitted every target loses nothing there, however sure it is made: the slack, one nat on
    one of the training samples, is what leaves it uncertain.

    Args:
        table: Of all pairs.
        scaled: Losses of temperature scaling.
        precisions: In ascending order.
        temperatures: Of the logits.
        temperature: That of temperature scaling.
        slack: Allowed beyond the best mean loss.
    """
    means = table.losses.sum(0) / table.counts.sum()
    alone = float(scaled.sum() / table.counts.sum())
    finite = np.where(np.isfinite(means), means, np.inf)
    best = min(alone, float(finite.min()))
    for t, per_temperature in enumerate(finite):
        at = int(per_temperature.argmin())
        if per_temperature[at] <= best + slack:
            return Choice(float(precisions[t]), float(temperatures[at]), float(per_temperature[at]), best)
    return Choice(np.inf, temperature, alone, best)
