"""Resizing: each spatial axis is multiplied by a small constant matrix, which has cheap derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Array

from bridge.tracing.lowering.pooling import on_channels_last
from bridge.tracing.lowering.registry import ChannelsLast, lowers

aten = torch.ops.aten
Sizes = Sequence[int] | None
Scales = Sequence[float] | None
# the elements that each output is made of, and their weights, both (how many, outputs)
Taps = tuple[np.ndarray, np.ndarray]
# from input length, output length and the input steps per output step
Rule = Callable[[int, int, float], Taps]


def _resize(x: Any, output_size: Sizes, scales: Scales, rule: Rule) -> Any:
    spatial = (x.array.ndim if isinstance(x, ChannelsLast) else x.ndim) - 2

    def resize(array: Array) -> Array:
        for axis in range(1, spatial + 1):
            n, scale = array.shape[axis], scales[axis - 1] if scales else None
            size = output_size[axis - 1] if output_size else math.floor(n * (scale or 1))
            array = _along(array, axis, *rule(n, size, 1 / scale if scale else n / size))
        return array

    return on_channels_last(x, spatial, resize)


def _along(x: Array, axis: int, positions: np.ndarray, weights: np.ndarray) -> Array:
    """Weighted elements, summed; as one product with a matrix, an infinity would meet zeros everywhere."""
    shape = [-1 if i == axis else 1 for i in range(x.ndim)]
    total: Array | None = None
    for at, weight in zip(np.clip(positions, 0, x.shape[axis] - 1), weights, strict=True):  # beyond counts for the edge
        part = jnp.take(x, at, axis)
        if (weight != 1).any():
            part = part * jnp.asarray(weight, x.dtype).reshape(shape)
        total = part if total is None else total + part
    assert total is not None  # every rule has a tap
    return total


def _nearest(n: int, size: int, step: float) -> Taps:
    # torch floors in float32, and so must we, or whole factors land one element off
    at = np.floor(np.arange(size, dtype=np.float32) * np.float32(step)).astype(int)
    return at[None], np.ones((1, size))


def _nearest_exact(n: int, size: int, step: float) -> Taps:
    at = np.floor((np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(step)).astype(int)
    return at[None], np.ones((1, size))


def _centres(n: int, size: int, step: float, align_corners: bool) -> np.ndarray:
    if align_corners:
        return np.arange(size) * ((n - 1) / (size - 1) if size > 1 else 0.0)
    return (np.arange(size) + 0.5) * step - 0.5


def _linear(align_corners: bool) -> Rule:
    def taps(n: int, size: int, step: float) -> Taps:
        at = np.maximum(_centres(n, size, step, align_corners), 0)
        low = np.floor(at).astype(int)
        return np.stack([low, low + 1]), np.stack([1 - (at - low), at - low])

    return taps


def _cubic(align_corners: bool) -> Rule:
    def taps(n: int, size: int, step: float) -> Taps:
        at = _centres(n, size, step, align_corners)
        low = np.floor(at).astype(int)
        offsets = np.arange(-1, 3)[:, None]
        return low + offsets, _cubic_kernel(at - low - offsets, -0.75)

    return taps


def _cubic_kernel(t: np.ndarray, a: float) -> np.ndarray:
    t = np.abs(t)
    near = ((a + 2) * t - (a + 3)) * t**2 + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


def _antialiased(kernel: Callable[[np.ndarray], np.ndarray], support: float, align_corners: bool) -> Rule:
    def taps(n: int, size: int, step: float) -> Taps:
        if align_corners:
            step = (n - 1) / (size - 1) if size > 1 else 0.0
        width = max(step, 1.0)
        centre = step * (np.arange(size) + 0.5)
        start = np.maximum((centre - support * width + 0.5).astype(int), 0)
        end = np.minimum((centre + support * width + 0.5).astype(int), n)
        # windows of different lengths: the last elements of a short one are its last, with no weight
        rows = start + np.arange((end - start).max())[:, None]
        weights = np.where(rows < end, kernel((rows - centre + 0.5) / width), 0.0)
        return np.minimum(rows, end - 1), weights / weights.sum(0)

    return taps


@lowers(aten.upsample_nearest1d.vec, aten.upsample_nearest2d.vec, aten.upsample_nearest3d.vec, layout="own")
def upsample_nearest(x: Any, output_size: Sizes, scale_factors: Scales) -> Any:
    """The nearest element to the left."""
    return _resize(x, output_size, scale_factors, _nearest)


@lowers(
    aten._upsample_nearest_exact1d.vec,
    aten._upsample_nearest_exact2d.vec,
    aten._upsample_nearest_exact3d.vec,
    layout="own",
)
def upsample_nearest_exact(x: Any, output_size: Sizes, scale_factors: Scales) -> Any:
    """The nearest element."""
    return _resize(x, output_size, scale_factors, _nearest_exact)


@lowers(aten.upsample_linear1d.vec, aten.upsample_bilinear2d.vec, aten.upsample_trilinear3d.vec, layout="own")
def upsample_linear(x: Any, output_size: Sizes, align_corners: bool, scale_factors: Scales) -> Any:
    """Linear interpolation along every axis."""
    return _resize(x, output_size, scale_factors, _linear(align_corners))


@lowers(aten.upsample_bicubic2d.vec, layout="own")
def upsample_bicubic(x: Any, output_size: Sizes, align_corners: bool, scale_factors: Scales) -> Any:
    """Cubic interpolation along both axes."""
    return _resize(x, output_size, scale_factors, _cubic(align_corners))


@lowers(aten._upsample_bilinear2d_aa.vec, layout="own")
def upsample_bilinear_antialiased(x: Any, output_size: Sizes, align_corners: bool, scale_factors: Scales) -> Any:
    """Linear interpolation that averages when it shrinks."""
    kernel = _antialiased(lambda t: np.maximum(1 - np.abs(t), 0), 1.0, align_corners)
    return _resize(x, output_size, scale_factors, kernel)


@lowers(aten._upsample_bicubic2d_aa.vec, layout="own")
def upsample_bicubic_antialiased(x: Any, output_size: Sizes, align_corners: bool, scale_factors: Scales) -> Any:
    """Cubic interpolation that averages when it shrinks."""
    return _resize(x, output_size, scale_factors, _antialiased(lambda t: _cubic_kernel(t, -0.5), 2.0, align_corners))
