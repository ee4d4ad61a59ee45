"""Calibration: does a confidence of 0.9 come true nine times in ten?"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from jax_core.types import ArrayLike


class BinMetrics(NamedTuple):
    """What falls into each bin of confidence; empty bins hold zeros."""

    proportions: Float[Array, " M"]
    confidences: Float[Array, " M"]
    accuracies: Float[Array, " M"]


def _bin_metrics(
    confidence: Float[ArrayLike, " N"],
    correctness: Shaped[ArrayLike, " N"],
    index: Int[Array, " N"],
    num_bins: int,
) -> BinMetrics:
    members = index == jnp.arange(num_bins, dtype=index.dtype)[:, None]  # (M, N)
    counts = members.sum(axis=1)
    # One masked sum a bin, not a scatter: a sequential float32 sum over 60,000 samples loses three digits.
    sums = [jnp.where(members, values, 0).sum(axis=1) for values in (confidence, correctness)]
    divisor = jnp.maximum(counts, 1).astype(confidence.dtype)
    means = [total.astype(confidence.dtype) / divisor for total in sums]
    return BinMetrics((counts / confidence.shape[0]).astype(confidence.dtype), *means)


def _checked(
    confidence: Float[ArrayLike, " N"], correctness: Shaped[ArrayLike, " N"], num_bins: int
) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
    confidence, correctness = jnp.asarray(confidence), jnp.asarray(correctness)
    if confidence.ndim != 1 or confidence.shape != correctness.shape or confidence.size == 0:
        raise ValueError(
            f"Confidence {confidence.shape} and correctness {correctness.shape} must be equally long vectors of at "
            "least one sample. Concatenate the batches first."
        )
    if num_bins < 1:
        raise ValueError(f"num_bins={num_bins}: there must be at least one bin.")
    return confidence, correctness.astype(confidence.dtype)


def bin_metrics(
    confidence: Float[ArrayLike, " N"], correctness: Shaped[ArrayLike, " N"], num_bins: int = 15
) -> BinMetrics:
    r"""Share, mean confidence and accuracy of the samples in each of `num_bins` equal intervals of [0, 1].

    Bin $m$ holds $B_m = \{i : \frac{m}{M} \le c_i < \frac{m+1}{M}\}$; a confidence of 1 belongs to the last.

    Args:
        confidence: Probability of the predicted class.
        correctness: 1 or True where the predicted class is the target.
        num_bins: The number of intervals.

    Returns:
        `(proportions, confidences, accuracies)`, each of shape `(num_bins,)`.

    Raises:
        ValueError: If the arrays are empty or no equally long vectors, or there is no bin.
    """
    confidence, correctness = _checked(confidence, correctness, num_bins)
    edges = jnp.linspace(0.0, 1.0, num_bins + 1, dtype=confidence.dtype)
    index = jnp.clip(jnp.searchsorted(edges, confidence, side="right") - 1, 0, num_bins - 1)
    return _bin_metrics(confidence, correctness, index, num_bins)


def _expected_gap(bins: BinMetrics) -> Float[Array, ""]:
    return (bins.proportions * jnp.abs(bins.accuracies - bins.confidences)).sum()


def expected_calibration_error(
    confidence: Float[ArrayLike, " N"], correctness: Shaped[ArrayLike, " N"], num_bins: int = 15
) -> Float[Array, ""]:
    r"""Expected calibration error, $\sum_m \frac{|B_m|}{n} |\mathrm{acc}(B_m) - \mathrm{conf}(B_m)|$, in [0, 1].

    Args:
        confidence: Probability of the predicted class.
        correctness: 1 or True where the predicted class is the target.
        num_bins: The number of equal intervals of [0, 1].

    Returns:
        The error, a scalar.

    Raises:
        ValueError: If the arrays are empty or no equally long vectors, or there is no bin.

    Source:
        C. Guo, G. Pleiss, Y. Sun and K. Q. Weinberger, On calibration of modern neural networks, 2017,
        arXiv:1706.04599.

    Example:
        >>> float(expected_calibration_error(jnp.full(4, 0.9), jnp.array([1, 1, 1, 0])))
        0.149999...
    """
    return _expected_gap(bin_metrics(confidence, correctness, num_bins))


def maximum_calibration_error(
    confidence: Float[ArrayLike, " N"], correctness: Shaped[ArrayLike, " N"], num_bins: int = 15
) -> Float[Array, ""]:
    r"""Maximum calibration error, $\max_m |\mathrm{acc}(B_m) - \mathrm{conf}(B_m)|$ over bins that hold samples.

    Args:
        confidence: Probability of the predicted class.
        correctness: 1 or True where the predicted class is the target.
        num_bins: The number of equal intervals of [0, 1].

    Returns:
        The error, a scalar in [0, 1].

    Raises:
        ValueError: If the arrays are empty or no equally long vectors, or there is no bin.

    Source:
        M. P. Naeini, G. F. Cooper and M. Hauskrecht, Obtaining well calibrated probabilities using Bayesian binning,
        2015, doi:10.1609/aaai.v29i1.9602.
    """
    bins = bin_metrics(confidence, correctness, num_bins)
    return jnp.abs(bins.accuracies - bins.confidences).max()


def adaptive_calibration_error(
    confidence: Float[ArrayLike, " N"], correctness: Shaped[ArrayLike, " N"], num_bins: int = 15
) -> Float[Array, ""]:
    """Expected calibration error over bins that hold equally many samples.

    A trained classifier puts most confidences near 1, where equal intervals hold nearly all samples in one bin;
    quantiles of the confidence spread them. Equal confidences are split in the order given.

    Args:
        confidence: Probability of the predicted class.
        correctness: 1 or True where the predicted class is the target.
        num_bins: The number of quantile bins; their sizes differ by at most one.

    Returns:
        The error, a scalar in [0, 1].

    Raises:
        ValueError: If the arrays are empty or no equally long vectors, or there is no bin.

    Source:
        J. Nixon, M. Dusenberry, G. Jerfel, T. Nguyen, J. Liu, L. Zhang and D. Tran, Measuring calibration in deep
        learning, 2019, arXiv:1904.01685 (their adaptive bins, for the predicted class).
    """
    confidence, correctness = _checked(confidence, correctness, num_bins)
    order = jnp.argsort(confidence, stable=True)
    index = jnp.asarray(quantile_index(confidence.shape[0], num_bins))
    return _expected_gap(_bin_metrics(confidence[order], correctness[order], index, num_bins))


def quantile_index(size: int, num_bins: int) -> Int[np.ndarray, " N"]:
    """The bin of each rank: `num_bins` consecutive runs of ranks, whose lengths differ by at most one."""
    # on the host in integers: a float32 rank * M / N would round across a boundary
    return np.arange(size, dtype=np.int64) * num_bins // size
