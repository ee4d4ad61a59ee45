"""What the examples show for their work: a table, a JSON file, figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")  # figures are written to files, also where there is no screen
import matplotlib.pyplot as plt
import numpy as np

from jax_core.evaluation import (
    accuracy,
    bin_metrics,
    brier,
    correctness,
    expected_calibration_error,
    nll_categorical,
)
from jax_core.plots import (
    proportion_diagram,
    reliability_diagram,
    shift_diagram,
    spectrum_plot,
)

NUM_BINS = 15


@dataclass(frozen=True)
class Prediction:
    """Class probabilities `(N, C)` of one method on the test set, and what they cost."""

    name: str
    probabilities: np.ndarray
    fit_seconds: float
    predict_seconds: float

    @property
    def confidence(self) -> np.ndarray:
        return self.probabilities.max(axis=-1)


@dataclass(frozen=True)
class Scores:
    """One row of the table."""

    method: str
    accuracy: float
    nll: float
    ece: float
    brier: float
    fit_seconds: float
    predict_seconds: float


def score(prediction: Prediction, labels: np.ndarray) -> Scores:
    prob, target = jnp.asarray(prediction.probabilities), jnp.asarray(labels)
    ece = expected_calibration_error(jnp.asarray(prediction.confidence), correctness(prob, target), NUM_BINS)
    values = [float(v) for v in (accuracy(prob, target), nll_categorical(prob, target), ece, brier(prob, target))]
    return Scores(prediction.name, *values, prediction.fit_seconds, prediction.predict_seconds)


def table(rows: Sequence[Scores]) -> str:
    """The rows as a Markdown table, aligned to be read in a terminal."""
    head = ["method", "accuracy", "NLL", f"ECE ({NUM_BINS} bins)", "Brier", "fit (s)", "predict (s)"]
    body = [
        [
            row.method,
            *(f"{value:.4f}" for value in (row.accuracy, row.nll, row.ece, row.brier)),
            *(f"{value:.1f}" for value in (row.fit_seconds, row.predict_seconds)),
        ]
        for row in rows
    ]
    widths = [max(len(line[column]) for line in [head, *body]) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "| " + " | ".join([first, *rest]) + " |"

    rule = "|-" + "-|-".join("-" * width for width in widths) + "-|"
    return "\n".join([line(head), rule, *map(line, body)])


def write_json(path: Path, settings: Mapping[str, Any], rows: Sequence[Scores]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"settings": dict(settings), "rows": [asdict(row) for row in rows]}, indent=2) + "\n")


def _bins(prediction: Prediction, labels: np.ndarray) -> Any:
    hits = prediction.probabilities.argmax(axis=-1) == labels
    return bin_metrics(jnp.asarray(prediction.confidence), jnp.asarray(hits), NUM_BINS)


def save_calibration(predictions: Sequence[Prediction], labels: np.ndarray, out: Path) -> None:
    """`reliability.png` and `proportions.png`: a panel for each method."""
    out.mkdir(parents=True, exist_ok=True)
    size = {"figsize": (3.8 * len(predictions), 3.9), "layout": "constrained"}
    reliability, upper = plt.subplots(1, len(predictions), squeeze=False, **size)
    proportions, lower = plt.subplots(1, len(predictions), squeeze=False, **size)
    for prediction, above, below in zip(predictions, upper[0], lower[0], strict=True):
        bins = _bins(prediction, labels)
        ece = score(prediction, labels).ece
        title = f"{prediction.name}\nECE {ece:.4f}"
        reliability_diagram(bins.confidences, bins.accuracies, NUM_BINS, ax=above, title=title)
        proportion_diagram(bins.proportions, NUM_BINS, ax=below, title=prediction.name)
    save_figure(reliability, out / "reliability.png")
    save_figure(proportions, out / "proportions.png")


def save_shift(before: Prediction, after: Prediction, labels: np.ndarray, out: Path) -> None:
    """`shift.png`: what Laplace does to the confidence in each test sample."""
    hits = before.probabilities.argmax(axis=-1) == labels
    ax = shift_diagram(before.confidence, after.confidence, hits)
    save_figure(ax.figure, out / "shift.png")


def save_spectrum(eigenvalues: np.ndarray, prior_precision: float, out: Path) -> None:
    """`spectrum.png`: the curvature that was found, beside the prior precision."""
    ax = spectrum_plot(eigenvalues, prior_precision=prior_precision)
    save_figure(ax.figure, out / "spectrum.png")


def save_figure(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)
