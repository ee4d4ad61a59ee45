"""What every search for a prior precision returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


@dataclass(frozen=True)
class Report:
    """What was tuned, by what, and what it gains; printable.

    Attributes:
        way: How the choice was made.
        samples: What it looked at.
        prior_precision: What was chosen.
        chosen: The mean negative log-likelihood under the choice.
        network: That of the network as it is.
        scaled: That of temperature scaling alone, for classification.
        scaling_temperature: The temperature of the latter.
        logit_temperature: What was chosen, for classification.
        sigma_noise: What was chosen, for regression.
    """

    way: str
    samples: str
    prior_precision: Any
    chosen: float | None = None
    network: float | None = None
    scaled: float | None = None
    scaling_temperature: float | None = None
    logit_temperature: float | None = None
    sigma_noise: float | None = None

    def __str__(self) -> str:
        """A line for each."""
        number = self.prior_precision
        shown = f"{number:.4g}" if isinstance(number, float) else f"{np.size(number)} numbers"
        chosen = [f"prior precision {shown}"]
        if self.logit_temperature is not None:
            chosen.append(f"logit temperature {self.logit_temperature:.3g}")
        if self.sigma_noise is not None:
            chosen.append(f"sigma_noise {self.sigma_noise:.4g}")
        lines = [f"Tuned by {self.way} on {self.samples}: {', '.join(chosen)}"]
        scaling = "" if self.scaling_temperature is None else f" ({self.scaling_temperature:.3g})"
        rows = (("network", self.network), (f"temperature scaling{scaling}", self.scaled), ("chosen", self.chosen))
        lines += [f"  {name + ' ':.<32s} {loss:.4f} nats" for name, loss in rows if loss is not None]
        return "\n".join(lines)


class Tuned(NamedTuple):
    """A prior precision and the curve that led to it.

    Attributes:
        prior_precision: The chosen one: a number, or an array with one entry per layer.
        loss: What it scored, smaller is better; the evidence enters as its negative logarithm, up to a constant.
        precisions: All that were tried, ``(T,)`` or ``(T, layers)``.
        losses: What each scored, ``(T,)``; where other hyperparameters were searched with it, at the best of those.
        logit_temperature: The temperature that was chosen with it, if one was searched for.
        sigma_noise: The noise that was chosen with it, if it was searched for.
        report: The figures beside those of the network and of temperature scaling.
    """

    prior_precision: Any
    loss: float
    precisions: np.ndarray
    losses: np.ndarray
    logit_temperature: float | None = None
    sigma_noise: float | None = None
    report: Report | None = None
