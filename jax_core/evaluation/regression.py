"""Scores of Gaussian predictions: a mean and a standard deviation for each target."""

from __future__ import annotations

import jax.numpy as jnp
from jax.scipy.stats import norm
from jaxtyping import Array, Float

from jax_core.types import ArrayLike


def _check_shapes(target: Float[ArrayLike, "..."], **predicted: Float[ArrayLike, "..."]) -> None:
    for name, values in predicted.items():
        if values.shape != target.shape:
            raise ValueError(
                f"{name} has shape {values.shape}, target {target.shape}. Give them one shape: "
                "broadcasting here would score every prediction against every target."
            )


def rmse(pred_mean: Float[ArrayLike, "*B"], target: Float[ArrayLike, "*B"]) -> Float[Array, ""]:
    r"""Root mean squared error, $\sqrt{\frac1n \sum_i (y_i - \mu_i)^2}$, in the target's unit.

    Args:
        pred_mean: Predicted means.
        target: Targets of the same shape.

    Returns:
        The error over all entries, a scalar.

    Raises:
        ValueError: If the shapes differ.
    """
    _check_shapes(target, pred_mean=pred_mean)
    return jnp.sqrt(jnp.square(target - pred_mean).mean())


def chi_squared(
    pred_mean: Float[ArrayLike, "*B"], pred_std: Float[ArrayLike, "*B"], target: Float[ArrayLike, "*B"]
) -> Float[Array, ""]:
    r"""Mean squared error in units of the predicted variance, $\frac1n \sum_i (y_i - \mu_i)^2 / \sigma_i^2$.

    It is 1 in expectation for a calibrated Gaussian; above 1 the predictions are too sure of themselves.

    Args:
        pred_mean: Predicted means.
        pred_std: Predicted standard deviations, positive, of the same shape.
        target: Targets of the same shape.

    Returns:
        The mean over all entries, a scalar without unit.

    Raises:
        ValueError: If the shapes differ.

    Source:
        K. Pearson, On the criterion that a given system of deviations ..., 1900, doi:10.1080/14786440009463897.
    """
    _check_shapes(target, pred_mean=pred_mean, pred_std=pred_std)
    return jnp.square((target - pred_mean) / pred_std).mean()


def nll_gaussian(
    pred_mean: Float[ArrayLike, "*B"], pred_std: Float[ArrayLike, "*B"], target: Float[ArrayLike, "*B"]
) -> Float[Array, ""]:
    r"""Mean negative log-density, $\frac1n \sum_i \frac{(y_i - \mu_i)^2}{2 \sigma_i^2} + \log \sigma_i \sqrt{2 \pi}$.

    Args:
        pred_mean: Predicted means.
        pred_std: Predicted standard deviations, positive, of the same shape.
        target: Targets of the same shape.

    Returns:
        The mean over all entries in nats, a scalar.

    Raises:
        ValueError: If the shapes differ.
    """
    _check_shapes(target, pred_mean=pred_mean, pred_std=pred_std)
    return -norm.logpdf(target, loc=pred_mean, scale=pred_std).mean()


def crps_gaussian(
    pred_mean: Float[ArrayLike, "*B"], pred_std: Float[ArrayLike, "*B"], target: Float[ArrayLike, "*B"]
) -> Float[Array, ""]:
    r"""Mean continuous ranked probability score of Gaussians; smaller is better, in the target's unit.

    $$\mathrm{CRPS} = \sigma \left(z (2 \Phi(z) - 1) + 2 \varphi(z) - \pi^{-1/2}\right), \quad z = (y - \mu) / \sigma$$

    Args:
        pred_mean: Predicted means.
        pred_std: Predicted standard deviations, positive, of the same shape.
        target: Targets of the same shape.

    Returns:
        The mean over all entries, a scalar.

    Raises:
        ValueError: If the shapes differ.

    Source:
        T. Gneiting, A. E. Raftery, A. H. Westveld and T. Goldman, Calibrated probabilistic forecasting using ensemble
        model output statistics and minimum CRPS estimation, 2005, doi:10.1175/MWR2904.1.
    """
    _check_shapes(target, pred_mean=pred_mean, pred_std=pred_std)
    z = (target - pred_mean) / pred_std
    return (pred_std * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - jnp.pi**-0.5)).mean()
