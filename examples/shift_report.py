"""How predictions hold on clean, turned and foreign inputs: figures for each method, tables, a picture."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")  # figures are written to files, also where there is no screen
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from jax_core.evaluation import (
    accuracy,
    auroc,
    brier,
    correctness,
    expected_calibration_error,
    nll_categorical,
    predictive_entropy,
)

if TYPE_CHECKING:
    from mnist import Sets

_BATCH = 250
# Okabe and Ito's colours, told apart by colour-blind readers too; line styles tell them apart in grey
_STYLES = [
    ("#000000", ":"),
    ("#E69F00", "--"),
    ("#999999", "-."),
    ("#0072B2", "-"),
    ("#56B4E9", "-"),
    ("#009E73", "-"),
    ("#CC79A7", "-"),
    ("#D55E00", "--"),
]


@dataclass(frozen=True)
class Judged:
    """One method on one network: figures by their names, and the NLL at each angle, the clean digits' at zero."""

    network: str
    method: str
    figures: dict[str, float]
    nll_by_angle: dict[int, float]


def judge(network: str, method: str, predict: Callable[[Tensor], Tensor], sets: Sets, *, fit_seconds: float) -> Judged:
    """All figures of a method's probabilities."""
    begun = time.perf_counter()
    clean = probabilities(predict, sets.clean)
    per_digit = (time.perf_counter() - begun) / len(clean)
    turned = {angle: probabilities(predict, images) for angle, images in sets.turned.items()}
    foreign = {name: probabilities(predict, images) for name, images in sets.foreign.items()}
    labels, turned_labels = jnp.asarray(sets.labels), jnp.asarray(sets.turned_labels)
    by_angle = {angle: float(nll_categorical(prob, turned_labels)) for angle, prob in turned.items()}
    figures = {
        "accuracy": float(accuracy(clean, labels)),
        "NLL": float(nll_categorical(clean, labels)),
        "ECE": calibration_error(clean, labels),
        "Brier": float(brier(clean, labels)),
        "turned NLL": float(np.mean(list(by_angle.values()))),
        "turned ECE": float(np.mean([calibration_error(prob, turned_labels) for prob in turned.values()])),
    }
    inside = predictive_entropy(clean)
    for name, prob in foreign.items():
        outside = predictive_entropy(prob)
        figures[f"{name} AUROC"] = float(auroc(inside, outside))
        # the share of foreign images that pass where 95 % of the digits do
        figures[f"{name} FPR95"] = float((outside <= jnp.quantile(inside, 0.95)).mean())
    figures |= {"fit (s)": fit_seconds, "ms a digit": 1e3 * per_digit}
    return Judged(network, method, figures, {0: figures["NLL"], **by_angle})


def probabilities(predict: Callable[[Tensor], Tensor], images: Tensor) -> jnp.ndarray:
    """Of all images, some at a time."""
    with torch.no_grad():
        return jnp.asarray(torch.cat([predict(part) for part in images.split(_BATCH)]).numpy())


def calibration_error(prob: jnp.ndarray, labels: jnp.ndarray) -> float:
    """The expected one, in 15 bins."""
    return float(expected_calibration_error(prob.max(-1), correctness(prob, labels), 15))


def tables(runs: Sequence[Sequence[Judged]]) -> str:
    """A Markdown table for each network; with several runs, means and standard errors."""
    parts = []
    for network in dict.fromkeys(row.network for row in runs[0]):
        rows = [[row for row in run if row.network == network] for run in runs]
        names = list(rows[0][0].figures)
        lines = [["method", *names]]
        for same in zip(*rows, strict=True):
            lines.append([same[0].method, *(_cell([row.figures[name] for row in same], name) for name in names)])
        parts.append(f"{network}\n\n{_aligned(lines)}")
    return "\n\n".join(parts)


def _cell(values: list[float], name: str) -> str:
    digits = 1 if name in ("fit (s)", "ms a digit") else 2 if name == "turned NLL" else 3
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1) / len(values) ** 0.5:.{digits}f}"


def _aligned(lines: list[list[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]

    def shown(cells: list[str]) -> str:
        first = cells[0].ljust(widths[0])
        return "| " + " | ".join([first, *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]) + " |"

    rule = "|-" + "-|-".join("-" * width for width in widths) + "-|"
    return "\n".join([shown(lines[0]), rule, *map(shown, lines[1:])])


def write_json(path: Path, runs: Sequence[Sequence[Judged]]) -> None:
    """All figures of all runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([[asdict(row) for row in run] for run in runs], indent=2) + "\n")


def save_angles(runs: Sequence[Sequence[Judged]], path: Path) -> None:
    """NLL against the angle, a panel a network and a line a method."""
    networks = list(dict.fromkeys(row.network for row in runs[0]))
    size = {"figsize": (4.6 * len(networks), 4.2), "layout": "constrained"}
    figure, axes = plt.subplots(1, len(networks), squeeze=False, sharey=True, **size)
    for ax, network in zip(axes[0], networks, strict=True):
        angles = list(runs[0][0].nll_by_angle)
        methods = list(dict.fromkeys(row.method for row in runs[0] if row.network == network))
        for method, (colour, style) in zip(methods, _STYLES, strict=False):
            same = [row for run in runs for row in run if (row.network, row.method) == (network, method)]
            means = [np.mean([row.nll_by_angle[angle] for row in same]) for angle in angles]
            ax.plot(angles, means, style, color=colour, label=method, linewidth=1.8)
        ax.set(title=network, xlabel="digits turned by (degrees)", yscale="log", xticks=angles)
    axes[0][0].set_yticks([0.1, 0.3, 1, 3, 10], ["0.1", "0.3", "1", "3", "10"])
    axes[0][0].set_ylabel("negative log-likelihood (nats a digit)")
    axes[0][0].legend(fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
