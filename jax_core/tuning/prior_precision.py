"""The scalar prior precision that maximises the evidence, from the spectrum alone."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import scipy.optimize

from jax_core.operators import Dense, Diagonal, LowRank, Operator


class Tuned(NamedTuple):
    """A prior precision and the log evidence there, up to a constant in it."""

    prior_precision: float
    objective: float


def spectrum(operator: Operator) -> np.ndarray:
    """The eigenvalues, those that are zero by structure left out.

    Raises:
        TypeError: For a structure whose eigenvalues are not at hand.
    """
    match operator:
        case LowRank():
            return np.asarray(operator.s, np.float64)
        case Dense():
            return np.asarray(operator.eigenvalues, np.float64)
        case Diagonal():
            return np.asarray(operator.diagonal, np.float64)
    raise TypeError(f"The spectrum of {type(operator).__name__} is not at hand. Tune by a grid in its place.")


def maximize_evidence(
    eigenvalues: np.ndarray, size: int, squared_norm: float, *, bounds: tuple[float, float] = (1e-8, 1e10)
) -> Tuned:
    r"""$\arg\max_\tau\; -\tfrac12 \bigl[\sum_i \log(1 + s_i / \tau) + \tau \lVert\theta^* - \mu_0\rVert^2\bigr]$.

    The evidence of an isotropic prior as a function of its precision (MacKay, 1992, doi:10.1162/neco.1992.4.3.448);
    one-dimensional, so it is scanned in $\log\tau$ and refined by Brent's method.

    Args:
        eigenvalues: Of the curvature, scaled by noise and temperature.
        size: Number of parameters (for the message alone).
        squared_norm: $\lVert\theta^* - \mu_0\rVert^2$.
        bounds: Of the search. A maximum at a bound is returned with a warning.
    """

    def negative(log_tau: float) -> float:
        tau = np.exp(log_tau)
        return 0.5 * float(np.log1p(eigenvalues / tau).sum() + tau * squared_norm)

    grid = np.linspace(np.log(bounds[0]), np.log(bounds[1]), 200)
    values = [negative(point) for point in grid]
    best = int(np.argmin(values))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    log_tau, value = scipy.optimize.fminbound(negative, low, high, xtol=1e-8, full_output=True)[:2]
    if best in (0, len(grid) - 1):
        warnings.warn(
            f"The evidence of {size} parameters is largest at the edge of the search, prior_precision="
            f"{np.exp(log_tau):.3g}: the curvature or the weights are close to zero. Set the prior by hand.",
            stacklevel=3,
        )
    return Tuned(float(np.exp(log_tau)), -float(value))
