"""What every search for a prior precision returns."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Tuned(NamedTuple):
    """A prior precision and the curve that led to it.

    Attributes:
        prior_precision: The best one: a number, or an array with one entry per layer.
        loss: What it scored, smaller is better; the evidence enters as its negative logarithm, up to a constant.
        precisions: All that were tried, ``(T,)`` or ``(T, layers)``.
        losses: What each scored, ``(T,)``.
    """

    prior_precision: Any
    loss: float
    precisions: np.ndarray
    losses: np.ndarray
