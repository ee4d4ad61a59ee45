r"""Prior precision and noise of a regression together.

With $\lambda = \tau \sigma^2$ the posterior covariance is $\sigma^2 (G + \lambda I)^{-1}$, $G$ the curvature at unit
noise, so that for each $\lambda$ the best $\sigma$ is at hand: one search over $\lambda$ finds both.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.optimize
from jaxtyping import Float

from jax_core.tuning.joint import NO_UNCERTAINTY, Table, most_uncertain
from jax_core.tuning.tuned import Tuned


def noisy_evidence(
    log_det: Callable[[float], float],
    squared_norm: float,
    squared_error: float,
    count: int,
    *,
    bounds: tuple[float, float] = (1e-8, 1e10),
) -> Tuned:
    r"""The largest evidence over $\tau$ and $\sigma$ (MacKay, 1992, doi:10.1162/neco.1992.4.3.448).

    $-\log p = \tfrac{E + \lambda \lVert\theta\rVert^2}{2 \sigma^2} + \tfrac n2 \log 2\pi\sigma^2 + \tfrac12 \sum_i
    \log(1 + s_i / \lambda)$ is smallest at $\sigma^2 = (E + \lambda \lVert\theta\rVert^2) / n$; one dimension is left.

    Args:
        log_det: $\lambda \mapsto \log\det(I + G / \lambda)$, of the curvature at unit noise.
        squared_norm: $\lVert\theta^* - \mu_0\rVert^2$.
        squared_error: $E = \sum \lVert f - y\rVert^2$.
        count: Scalar targets $n$.
        bounds: Of $\lambda$.
    """

    def noise(ratio: float) -> float:
        return max((squared_error + ratio * squared_norm) / count, 1e-30)

    def loss(log_ratio: float) -> float:
        ratio = float(np.exp(log_ratio))
        fit = 0.5 * count * (1 + np.log(2 * np.pi * noise(ratio)))
        return float(fit + 0.5 * log_det(ratio))

    grid = np.linspace(np.log(bounds[0]), np.log(bounds[1]), 200)
    losses = np.array([loss(point) for point in grid])
    best = int(losses.argmin())
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    point, value = scipy.optimize.fminbound(loss, low, high, xtol=1e-8, full_output=True)[:2]
    variance = noise(float(np.exp(point)))
    precisions = np.exp(grid) / np.array([noise(float(np.exp(p))) for p in grid])
    found = Tuned(float(np.exp(point)) / variance, float(value), precisions, losses)
    return found._replace(sigma_noise=float(np.sqrt(variance)))


def noisy_held_out(
    residual: Float[np.ndarray, "N D"],
    spread: Float[np.ndarray, "N T D"],
    ratios: Float[np.ndarray, " T"],
    noise: Float[np.ndarray, " D"] | None,
) -> tuple[Tuned, float]:
    r"""The most uncertainty that held-out data allow, and the noise that goes with it.

    At $\lambda$ a target is $\mathcal N(f, \sigma^2 (1 + v_\lambda))$ and the best noise $\sigma^2$ is the mean of
    $r^2 / (1 + v_\lambda)$.

    Args:
        residual: $y - f$.
        spread: $v_\lambda$, the variances of the outputs at unit noise; those themselves where the noise is given.
        ratios: $\lambda$, ascending; prior precisions where the noise is given.
        noise: Standard deviations of the outputs, ``None`` to find one for all.

    Returns:
        The choice, and the mean loss of the network with constant noise.
    """
    squares = residual[:, None, :] ** 2  # (N, 1, D)
    if noise is None:
        variance = np.maximum((squares / (1 + spread)).mean((0, 2)), 1e-30)  # (T,)
        total = variance[:, None] * (1 + spread)
        alone = np.broadcast_to(max(float(squares.mean()), 1e-30), squares.shape)
    else:
        variance = np.ones(len(ratios))
        total = noise**2 + spread
        alone = np.broadcast_to(noise**2, squares.shape)
    losses, network = (_density(squares, v) for v in (total, alone))
    precisions = ratios / variance
    table = Table(losses[..., None], np.full(len(residual), float(residual.shape[1])))
    choice = most_uncertain(table, network[:, 0], ratios, np.ones(1), 1.0)
    curve = losses.sum(0) / residual.size
    reference = float(network.sum() / residual.size)
    if np.isinf(choice.precision):
        found = Tuned(NO_UNCERTAINTY, reference, precisions, curve)
        sigma = float(np.sqrt(alone.flat[0]))
    else:
        at = int(np.flatnonzero(ratios == choice.precision)[0])
        found = Tuned(float(precisions[at]), choice.loss, precisions, curve)
        sigma = float(np.sqrt(variance[at]))
    return found._replace(sigma_noise=sigma if noise is None else None), reference


def _density(squares: np.ndarray, variance: np.ndarray) -> Float[np.ndarray, "N T"]:
    return (0.5 * np.log(2 * np.pi * variance) + 0.5 * squares / variance).sum(-1)
