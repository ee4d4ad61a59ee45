"""How far results are from torch's, as one number."""

from __future__ import annotations

import math
from typing import Any

import torch

from bridge.tensors import to_torch


def relative_error(got: Any, wanted: torch.Tensor, floor: float = 0.0) -> float:
    """How far a traced result, or torch's own in another precision, is from torch's: infinity for another shape.

    Args:
        got: An array or a tensor.
        wanted: Torch's tensor.
        floor: Of the norm that the difference is divided by.
    """
    a, b = (x.detach().cpu() for x in (got if isinstance(got, torch.Tensor) else to_torch(got), wanted))
    if a.shape != b.shape:
        return math.inf
    if not (b.is_floating_point() or b.is_complex()):
        return 0.0 if torch.equal(a, b) else math.inf
    difference = norm(a - b)  # without rounding where they are close
    if not math.isfinite(difference):
        difference = norm(torch.where((a == b) | (a.isnan() & b.isnan()), 0, a - b))
    scale = max(norm(b), floor)
    if not math.isfinite(scale):
        scale = max(norm(b[b.isfinite()]), floor)
    return difference / scale if scale else difference


def norm(x: torch.Tensor) -> float:
    """The Euclidean norm, summed in double precision."""
    return float(torch.linalg.vector_norm(x, dtype=torch.complex128 if x.is_complex() else torch.float64))
