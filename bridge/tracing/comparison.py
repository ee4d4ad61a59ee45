"""How far results are from torch's: as one number, and part by part."""

from __future__ import annotations

import math
from typing import Any

import torch

from bridge.tensors import to_torch

_SMALL = 1 << 16  # elements, up to which every axis is looked at, in double precision


def relative_error(got: Any, wanted: torch.Tensor, floor: float = 0.0) -> float:
    """How far a traced result, or torch's own in another precision, is from torch's: infinity for another shape.

    Args:
        got: An array or a tensor.
        wanted: Torch's tensor.
        floor: Of the norm that the difference is divided by.
    """
    a, b = as_pair(got, wanted)
    if a.shape != b.shape:
        return math.inf
    if not (b.is_floating_point() or b.is_complex()):
        return 0.0 if torch.equal(a, b) else math.inf
    difference = norm(a - b)  # without rounding where they are close
    if not math.isfinite(difference):
        difference = norm(_difference(a, b))
    scale = max(norm(b), floor)
    if not math.isfinite(scale):
        scale = max(norm(b[b.isfinite()]), floor)
    return difference / scale if scale else difference


def norm(x: torch.Tensor) -> float:
    """The Euclidean norm, summed in double precision."""
    x = x if x.layout is torch.strided else x.to_dense()  # an embedding may want sparse gradients
    return float(torch.linalg.vector_norm(x, dtype=torch.complex128 if x.is_complex() else torch.float64))


def part_norms(x: torch.Tensor) -> list[torch.Tensor]:
    """For each axis, the norms of what lies at each of its places: rows, columns, channels. Not so for vectors.

    The norm of the whole is that of its large parts, beside which a small one may be wrong.
    """
    if x.ndim == 0:
        return []
    if x.ndim == 1:
        return [x.abs()]
    if x.numel() < _SMALL:
        axes = range(x.ndim)
        wide = x.double()
        return [torch.linalg.vector_norm(wide, dim=[i for i in axes if i != axis]) for axis in axes]
    pairs = x.abs() if x.ndim == 2 else torch.linalg.vector_norm(x.flatten(2), dim=2)  # of images, the channels
    return [torch.linalg.vector_norm(pairs, dim=1), torch.linalg.vector_norm(pairs, dim=0)]


def part_errors(got: Any, wanted: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each axis, the norms of the difference part by part, and those of the wanted values."""
    a, b = as_pair(got, wanted)
    if a.shape != b.shape or not b.is_floating_point():
        return []  # :func:`relative_error` says all there is to say
    difference = a.to(b.dtype) - b
    if not bool(difference.isfinite().all()):
        difference = _difference(a, b)
        b = b.nan_to_num(0.0, 0.0, 0.0)
    return list(zip(part_norms(difference), part_norms(b), strict=True))


def worst_part(got: Any, wanted: torch.Tensor, floor: float) -> float:
    """The largest relative error of a part, its norm being taken for no less than `floor`."""
    errors = [d / w.clamp(min=floor) for d, w in part_errors(got, wanted) if d.numel()]
    found = [float(e.masked_fill(e.isnan(), math.inf).max()) for e in errors]
    return max(found, default=0.0)


def as_pair(got: Any, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as tensors on the host."""
    return (got if isinstance(got, torch.Tensor) else to_torch(got)).detach().cpu(), wanted.detach().cpu()


def _difference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.where((a == b) | (a.isnan() & b.isnan()), 0, a - b)
