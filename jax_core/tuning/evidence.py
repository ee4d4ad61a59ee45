"""The prior precision that maximises the evidence: the scalar one from the spectrum alone, any other by its loss."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import singledispatch
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import Array, Float

from jax_core.data.trees import flattener, get_size
from jax_core.operators import BlockDiagonal, BlockLowRank, Dense, Diagonal, LowRank, Operator, Symmetric
from jax_core.posterior import prior_vector
from jax_core.tuning.grouped import GroupedSpectrum
from jax_core.tuning.tuned import Tuned
from jax_core.types import Params
from jax_core.xla.precision import full_precision

LogDet: TypeAlias = Callable[[float], float]
r"""$\tau \mapsto \log\det(I + A / \tau)$."""


def spectrum(operator: Operator) -> np.ndarray:
    """The eigenvalues, those that are zero by structure left out.

    Raises:
        TypeError: For a structure whose eigenvalues are not at hand.
    """
    match operator:
        case LowRank():
            return np.asarray(operator.s, np.float64)
        case Dense() | Symmetric():
            return np.asarray(operator.eigenvalues, np.float64)
        case Diagonal():
            return np.asarray(operator.diagonal, np.float64)
        case BlockDiagonal():
            return np.asarray(operator.spectrum, np.float64)
    raise TypeError(f"The spectrum of {type(operator).__name__} is not at hand. Tune by a grid in its place.")


def log_det(operator: Operator) -> LogDet:
    r"""$\log\det(I + A / \tau)$ as a function of $\tau$.

    Of a low rank beside blocks its own share is that of a spectrum in groups (see :mod:`jax_core.tuning.grouped`), the
    blocks' is exact.

    Raises:
        TypeError: For a structure whose eigenvalues are not at hand.
    """
    if isinstance(operator, BlockLowRank):
        grouped = GroupedSpectrum.of(operator.projection())
        return lambda tau: float(grouped.log_det_ratio(tau))
    return log_det_of_spectrum(spectrum(operator))


def log_det_of_spectrum(eigenvalues: np.ndarray) -> LogDet:
    r"""$\sum_i \log(1 + s_i / \tau)$; what rounding left below zero counts as zero."""
    values = np.maximum(eigenvalues, 0.0)
    return lambda tau: float(np.log1p(values / tau).sum())


def maximize_evidence(
    curvature: np.ndarray | LogDet, size: int, squared_norm: float, *, bounds: tuple[float, float] = (1e-8, 1e10)
) -> Tuned:
    r"""$\arg\min_\tau\; \tfrac12 \bigl[\sum_i \log(1 + s_i / \tau) + \tau \lVert\theta^* - \mu_0\rVert^2\bigr]$.

    The negative log evidence of an isotropic prior as a function of its precision, up to a constant (MacKay, 1992,
    doi:10.1162/neco.1992.4.3.448); one-dimensional, so it is scanned in $\log\tau$ and refined by Brent's method.

    Args:
        curvature: Its eigenvalues, or its :func:`log_det`; scaled by noise and temperature.
        size: Number of parameters (for the message alone).
        squared_norm: $\lVert\theta^* - \mu_0\rVert^2$.
        bounds: Of the search. A maximum at a bound is returned with a warning.
    """
    ratio = curvature if callable(curvature) else log_det_of_spectrum(curvature)

    def loss(log_tau: float) -> float:
        tau = float(np.exp(log_tau))
        return 0.5 * (ratio(tau) + tau * squared_norm)

    grid = np.linspace(np.log(bounds[0]), np.log(bounds[1]), 200)
    losses = np.array([loss(point) for point in grid])
    best = int(np.argmin(losses))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    log_tau, value = scipy.optimize.fminbound(loss, low, high, xtol=1e-8, full_output=True)[:2]
    if best in (0, len(grid) - 1):
        warnings.warn(
            f"The evidence of {size} parameters is largest at the edge of the search, prior_precision="
            f"{np.exp(log_tau):.3g}: the curvature or the weights are close to zero. Set the prior by hand.",
            stacklevel=3,
        )
    return Tuned(float(np.exp(log_tau)), float(value), np.exp(grid), losses)


def evidence_loss(curvature: Operator, mean: Params, *, prior_mean: Any = 0.0) -> Callable[[Any], Float[Array, ""]]:
    r"""The negative log evidence, up to a constant, as a differentiable function of the prior precision.

    $\tfrac12 [\log\det(I + D^{-1/2} G D^{-1/2}) + (\theta^* - \mu_0)^\top D (\theta^* - \mu_0)]$ for a scalar, a
    per-layer or a diagonal $D$, through the determinant of the smaller of two Gram matrices, whose derivative exists
    where eigenvalues coincide too.

    Args:
        curvature: $G$, scaled by noise and temperature.
        mean: $\theta^*$.
        prior_mean: $\mu_0$.
    """
    centred = flattener(mean)[0](mean) - prior_mean

    @full_precision
    def loss(precision: Any) -> Array:
        prior = jnp.broadcast_to(prior_vector(precision, mean), (get_size(mean),))
        return 0.5 * (_log_det_ratio(curvature, 1 / prior) + jnp.sum(prior * centred**2))

    return loss


@singledispatch
def _log_det_ratio(operator: Operator, variance: Array) -> Array:
    raise TypeError(f"The evidence gradient of {type(operator).__name__} is not at hand. Tune by a grid in its place.")


@_log_det_ratio.register
def _(operator: Diagonal, variance: Array) -> Array:
    return jnp.log1p(operator.diagonal * variance).sum()


@_log_det_ratio.register
def _(operator: Dense, variance: Array) -> Array:
    # rounding leaves a singular matrix with eigenvalues just below zero
    return _small_log_det(operator.eigenvectors * jnp.sqrt(jnp.maximum(operator.eigenvalues, 0.0)), variance)


@_log_det_ratio.register
def _(operator: Symmetric, variance: Array) -> Array:
    root = jnp.sqrt(variance)
    relative = root[:, None] * operator.matrix() * root
    return jnp.linalg.slogdet(relative + jnp.eye(operator.size, dtype=relative.dtype))[1]


@_log_det_ratio.register
def _(operator: LowRank, variance: Array) -> Array:
    return _small_log_det(operator.U * jnp.sqrt(operator.s), variance)


@_log_det_ratio.register
def _(operator: BlockDiagonal, variance: Array) -> Array:
    return jnp.log1p(operator.spectrum * variance).sum()  # a prior is one number for a block


@_log_det_ratio.register
def _(operator: BlockLowRank, variance: Array) -> Array:
    own = operator.blocks.spectrum * variance
    rest = _small_log_det(operator.U * jnp.sqrt(operator.s), variance / (1 + own))
    return jnp.log1p(own).sum() + rest


def _small_log_det(columns: Float[Array, "P R"], variance: Float[Array, " P"]) -> Array:
    """``log det (I + C^T diag(v) C)``, which equals ``log det (I + diag(v)^{1/2} C C^T diag(v)^{1/2})``."""
    inner = columns.T @ (variance[:, None] * columns)
    return jnp.linalg.slogdet(inner + jnp.eye(inner.shape[0], dtype=inner.dtype))[1]


def evidence_on_grid(loss: Callable[[Any], Array], precisions: np.ndarray) -> np.ndarray:
    """The loss of each scalar precision, compiled once."""
    compiled = jax.jit(loss)
    return np.array([float(compiled(jnp.asarray(p, jnp.result_type(float)))) for p in precisions])
