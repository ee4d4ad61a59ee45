"""Figures of calibration, of the curvature's spectrum and of what Laplace changes.

Every function draws on the Axes it is given or on a new figure, and returns the Axes; matplotlib is imported inside,
so that the core does not need it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Shaped

from jax_core.types import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, which readers with any colour vision can tell apart.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#7F7F7F"


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(4.5, 4.0), layout="constrained")[1]


def _bin_grid(values: Float[ArrayLike, " M"], num_bins: int, name: str) -> tuple[np.ndarray, float, np.ndarray]:
    """Left edges and width of the bins, and the values on the host."""
    heights = np.asarray(values, dtype=float)
    if heights.shape != (num_bins,):
        raise ValueError(f"{name} has shape {heights.shape}, num_bins={num_bins} asks for ({num_bins},).")
    return np.arange(num_bins) / num_bins, 1 / num_bins, heights


def reliability_diagram(
    bin_confidences: Float[ArrayLike, " M"],
    bin_accuracies: Float[ArrayLike, " M"],
    num_bins: int,
    *,
    ax: Axes | None = None,
    title: str | None = None,
    color: str = BLUE,
) -> Axes:
    """Accuracy over confidence: bars on the diagonal are calibrated, bars below it are too sure of themselves.

    A bar stands in each interval that holds samples, a line joins it to the mean confidence there: the gap that the
    expected calibration error averages.

    Args:
        bin_confidences: Mean confidence in each bin, of `bin_metrics`.
        bin_accuracies: Accuracy in each bin.
        num_bins: The number of bins.
        ax: Where to draw; a new figure by default.
        title: A title for the axes.
        color: Colour of the bars.

    Returns:
        The axes.

    Raises:
        ValueError: If an array does not hold one value a bin.

    Source:
        A. Niculescu-Mizil and R. Caruana, Predicting good probabilities with supervised learning, 2005,
        doi:10.1145/1102351.1102430.
    """
    ax = _axes(ax)
    left, width, accuracies = _bin_grid(bin_accuracies, num_bins, "bin_accuracies")
    _, _, confidences = _bin_grid(bin_confidences, num_bins, "bin_confidences")
    held = (confidences > 0) | (accuracies > 0)  # empty bins hold zeros
    ax.bar(left[held], accuracies[held], width, align="edge", color=color, edgecolor="white", label="accuracy")
    ax.vlines(
        confidences[held], accuracies[held], confidences[held], color=ORANGE, linewidth=2.5, label="gap to confidence"
    )
    ax.plot([0, 1], [0, 1], linestyle="--", color=GREY, label="calibrated")
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="confidence", ylabel="accuracy", title=title or "")
    ax.legend(loc="best", framealpha=0.8, edgecolor="none")
    return ax


def proportion_diagram(
    bin_proportions: Float[ArrayLike, " M"],
    num_bins: int,
    *,
    ax: Axes | None = None,
    title: str | None = None,
    color: str = BLUE,
) -> Axes:
    """Share of samples in each bin of confidence.

    Args:
        bin_proportions: Share of samples in each bin, of `bin_metrics`.
        num_bins: The number of bins.
        ax: Where to draw; a new figure by default.
        title: A title for the axes.
        color: Colour of the bars.

    Returns:
        The axes.

    Raises:
        ValueError: If the array does not hold one value a bin.
    """
    ax = _axes(ax)
    left, width, proportions = _bin_grid(bin_proportions, num_bins, "bin_proportions")
    bars = ax.bar(left, proportions, width, align="edge", color=color, edgecolor="white")
    # Few bins hold most samples, and the rest would be read as empty without a figure.
    labels = [f"{100 * p:.1f}" if p > 0 else "" for p in proportions]
    ax.bar_label(bars, labels, fontsize=7, padding=1)
    ax.set(xlim=(0, 1), ylim=(0, 1.08), xlabel="confidence", ylabel="share of samples", title=title or "")
    ax.text(0.02, 0.97, "per cent of samples above each bar", transform=ax.transAxes, va="top", fontsize=8, color=GREY)
    return ax


def spectrum_plot(
    eigenvalues: Float[ArrayLike, " R"],
    *,
    prior_precision: float | None = None,
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """Eigenvalues of the curvature, largest first, on a logarithmic scale.

    Args:
        eigenvalues: Eigenvalues in any order; those that are not positive are left out of the logarithm's reach.
        prior_precision: Drawn as a line if given: directions above it are learnt from the data, those below from the
            prior.
        ax: Where to draw; a new figure by default.
        title: A title for the axes.

    Returns:
        The axes.
    """
    ax = _axes(ax)
    values = np.sort(np.asarray(eigenvalues, dtype=float).ravel())[::-1]
    values = values[values > 0]
    ax.semilogy(np.arange(1, len(values) + 1), values, ".-", color=BLUE, label="eigenvalues")
    if prior_precision is not None:
        ax.axhline(prior_precision, linestyle="--", color=ORANGE, label="prior precision")
        ax.legend(frameon=False)
    ax.set(xlabel="index", ylabel="eigenvalue of the curvature", title=title or "")
    return ax


def shift_diagram(
    confidence_map: Float[ArrayLike, " N"],
    confidence_laplace: Float[ArrayLike, " N"],
    correctness: Shaped[ArrayLike, " N"],
    *,
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """Confidence before and after Laplace, one point a sample: wrong answers should fall furthest below the diagonal.

    Args:
        confidence_map: Confidence of the trained network.
        confidence_laplace: Confidence of the Laplace predictive on the same samples.
        correctness: 1 or True where the network's class is the target.
        ax: Where to draw; a new figure by default.
        title: A title for the axes.

    Returns:
        The axes.

    Raises:
        ValueError: If the arrays are not equally long vectors.
    """
    before, after, right = (np.asarray(a) for a in (confidence_map, confidence_laplace, correctness))
    if before.ndim != 1 or not before.shape == after.shape == right.shape:
        raise ValueError(f"Expected three equally long vectors, got {before.shape}, {after.shape} and {right.shape}.")
    ax, right = _axes(ax), right.astype(bool)
    for chosen, color, marker, label in ((right, BLUE, "o", "right"), (~right, ORANGE, "X", "wrong")):
        name = f"{label} ({int(chosen.sum())})"
        ax.scatter(before[chosen], after[chosen], s=14, c=color, marker=marker, alpha=0.6, linewidths=0, label=name)
    ax.plot([0, 1], [0, 1], linestyle="--", color=GREY, linewidth=1)
    ax.set(xlabel="confidence of the network", ylabel="confidence with Laplace", title=title or "")
    ax.set(xlim=(0, 1.01), ylim=(0, 1.01), aspect="equal")
    ax.legend(loc="upper left", frameon=False)
    return ax
