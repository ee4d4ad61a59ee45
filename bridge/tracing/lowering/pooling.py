"""Average pooling as sums of strided slices, axis by axis.

XLA's `reduce_window` is slow on the CPU, and slower still under vmap; slices fuse and have cheap derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from jax import lax
from jaxtyping import Array

from bridge.tracing.lowering.convolution import per_axis
from bridge.tracing.lowering.registry import ChannelsLast, channels_last, lowers

aten = torch.ops.aten
Ints = int | Sequence[int]


def on_channels_last(x: Any, spatial: int, pool: Callable[[Array], Any]) -> Any:
    """Apply `pool` to the channels-last array of `x`, which may lack a batch axis."""
    if not isinstance(x, ChannelsLast) and x.ndim == spatial + 1:
        return on_channels_last(x[None], spatial, pool).logical[0]
    return ChannelsLast(pool(channels_last(x)))


def output_size(n: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """The number of windows along an axis of length `n`, counted as torch does."""
    reach = n + 2 * padding - dilation * (kernel - 1) - 1
    size = (-(-reach // stride) if ceil_mode else reach // stride) + 1
    # the last window has to start inside the input or its left padding
    return size - 1 if ceil_mode and (size - 1) * stride >= n + padding else size


def windows(
    x: Array, axis: int, kernel: int, stride: int, padding: int, size: int, fill: Any, dilation: int = 1
) -> list[Array]:
    """One strided slice of `x` along `axis` for each position in the window."""
    end = (size - 1) * stride + dilation * (kernel - 1) + 1
    widths = [(0, 0, 0)] * x.ndim
    widths[axis] = (padding, max(end - x.shape[axis] - padding, 0), 0)
    if widths[axis] != (0, 0, 0):
        x = lax.pad(x, jnp.asarray(fill, x.dtype), widths)
    starts = [i * dilation for i in range(kernel)]
    return [lax.slice_in_dim(x, a, a + (size - 1) * stride + 1, stride, axis) for a in starts]


@lowers(aten.avg_pool1d.default, layout="own")
def avg_pool1d(
    x: Any,
    kernel_size: Ints,
    stride: Ints = (),
    padding: Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Any:
    """The mean of every window over one axis."""
    return _avg_pool(x, 1, kernel_size, stride, padding, ceil_mode, count_include_pad, None)


@lowers(aten.avg_pool2d.default, layout="own")
def avg_pool2d(
    x: Any,
    kernel_size: Ints,
    stride: Ints = (),
    padding: Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    """The mean of every window over two axes."""
    return _avg_pool(x, 2, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


@lowers(aten.avg_pool3d.default, layout="own")
def avg_pool3d(
    x: Any,
    kernel_size: Ints,
    stride: Ints = (),
    padding: Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    """The mean of every window over three axes."""
    return _avg_pool(x, 3, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def _avg_pool(
    x: Any, spatial: int, kernel: Ints, stride: Ints, padding: Ints, ceil_mode: bool, include: bool, divisor: int | None
) -> Any:
    kernels = per_axis(kernel, spatial)
    strides = per_axis(stride, spatial) if stride or stride == 0 else kernels
    paddings = per_axis(padding, spatial)

    def pool(array: Array) -> Array:
        scale: float | np.ndarray = 1.0
        for axis, (k, s, p) in enumerate(zip(kernels, strides, paddings, strict=True), start=1):
            n = array.shape[axis]
            size = output_size(n, k, s, p, 1, ceil_mode)
            array = _window_sums(array, axis, k, s, p, size)
            counts = _counts(n, k, s, p, size, include).reshape((-1,) + (1,) * (spatial - axis + 1))
            scale = scale * counts
        if divisor is not None:
            return array / divisor
        scale = np.asarray(scale)
        return array / jnp.asarray(scale.flat[0] if (scale == scale.flat[0]).all() else scale, array.dtype)

    return on_channels_last(x, spatial, pool)


def _window_sums(x: Array, axis: int, kernel: int, stride: int, padding: int, size: int) -> Array:
    if kernel == stride and padding == 0 and size * kernel <= x.shape[axis]:
        # windows side by side: a reshape, whose transpose is a broadcast
        x = lax.slice_in_dim(x, 0, size * kernel, axis=axis)
        return x.reshape(*x.shape[:axis], size, kernel, *x.shape[axis + 1 :]).sum(axis + 1)
    slices = windows(x, axis, kernel, stride, padding, size, 0)
    total = slices[0]
    for part in slices[1:]:
        total = total + part
    return total


def _counts(n: int, kernel: int, stride: int, padding: int, size: int, include: bool) -> np.ndarray:
    """How many elements each window counts along one axis."""
    start = np.arange(size) * stride - padding
    end = np.minimum(start + kernel, n + padding)
    return (end - start) if include else np.minimum(end, n) - np.maximum(start, 0)


@lowers(aten.adaptive_avg_pool1d.default, layout="own")
def adaptive_avg_pool1d(x: Any, output_size: Ints) -> Any:
    """The mean over one axis cut into a given number of windows."""
    return _adaptive_avg_pool(x, 1, output_size)


@lowers(aten.adaptive_avg_pool2d.default, aten._adaptive_avg_pool2d.default, layout="own")
def adaptive_avg_pool2d(x: Any, output_size: Ints) -> Any:
    """The mean over two axes cut into a given number of windows."""
    return _adaptive_avg_pool(x, 2, output_size)


@lowers(aten.adaptive_avg_pool3d.default, aten._adaptive_avg_pool3d.default, layout="own")
def adaptive_avg_pool3d(x: Any, output_size: Ints) -> Any:
    """The mean over three axes cut into a given number of windows."""
    return _adaptive_avg_pool(x, 3, output_size)


def adaptive_bounds(n: int, size: int) -> list[tuple[int, int]]:
    """Start and end of each of `size` windows over `n` elements; they may overlap."""
    return [(i * n // size, -(-(i + 1) * n // size)) for i in range(size)]


def _adaptive_avg_pool(x: Any, spatial: int, sizes: Ints) -> Any:
    def pool(array: Array) -> Array:
        for axis, size in enumerate(per_axis(sizes, spatial), start=1):
            array = _adaptive_mean(array, axis, array.shape[axis] if size is None else size)
        return array

    return on_channels_last(x, spatial, pool)


def _adaptive_mean(x: Array, axis: int, size: int) -> Array:
    n = x.shape[axis]
    if n == size:
        return x
    if n % size == 0:
        return x.reshape(*x.shape[:axis], size, n // size, *x.shape[axis + 1 :]).mean(axis + 1)
    # slices, since in a product with zeros one infinity would reach every window
    parts = [lax.slice_in_dim(x, a, b, axis=axis).mean(axis, keepdims=True) for a, b in adaptive_bounds(n, size)]
    return jnp.concatenate(parts, axis)
