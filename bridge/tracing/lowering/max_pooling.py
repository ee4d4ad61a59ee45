"""Maxima over windows, by comparing strided slices axis by axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import torch
from jax import lax
from jaxtyping import Array

from bridge.tracing.lowering.convolution import per_axis
from bridge.tracing.lowering.pooling import Ints, adaptive_bounds, output_size, windows
from bridge.tracing.lowering.registry import ChannelsLast, channels_last, lowers

aten = torch.ops.aten
# values, and beside each its position in the image, flattened; compiled away where nobody reads the second
Marked = tuple[Array, Array]


@lowers(aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default, layout="own")
def max_pool(
    x: Any,
    kernel_size: Sequence[int],
    stride: Ints = (),
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
) -> Any:
    """The largest element of every window."""
    return max_pool_with_indices(x, kernel_size, stride, padding, dilation, ceil_mode)[0]


@lowers(
    aten.max_pool1d_with_indices.default,
    aten.max_pool2d_with_indices.default,
    aten.max_pool3d_with_indices.default,
    layout="own",
)
def max_pool_with_indices(
    x: Any,
    kernel_size: Sequence[int],
    stride: Ints = (),
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
) -> Any:
    """The largest element of every window, and where it is."""
    spatial = _spatial(x, kernel_size)
    kernels, paddings, holes = per_axis(kernel_size, spatial), per_axis(padding, spatial), per_axis(dilation, spatial)
    strides = per_axis(stride, spatial) if stride else kernels

    def along(marked: Marked, axis: int) -> Marked:
        k, s, p, d = kernels[axis - 1], strides[axis - 1], paddings[axis - 1], holes[axis - 1]
        size = output_size(marked[0].shape[axis], k, s, p, d, ceil_mode)
        fills = (_lowest(marked[0]), 0)
        values, places = (windows(a, axis, k, s, p, size, fill, d) for a, fill in zip(marked, fills, strict=True))
        return _first_max(list(zip(values, places, strict=True)))

    return _pool(x, spatial, along)


@lowers(
    aten.adaptive_max_pool1d.default,
    aten.adaptive_max_pool2d.default,
    aten.adaptive_max_pool3d.default,
    layout="own",
)
def adaptive_max_pool(x: Any, output_size: Sequence[int | None]) -> Any:
    """The maxima over each axis cut into a given number of windows, and where they are."""
    spatial = _spatial(x, output_size)

    def along(marked: Marked, axis: int) -> Marked:
        n = marked[0].shape[axis]
        size = output_size[axis - 1] if len(output_size) > 1 else output_size[0]
        adaptive_bounds(n, n if size is None else size)
        best = [
            _first_max([_at(marked, axis, i) for i in range(*b)])
            for b in adaptive_bounds(n, n if size is None else size)
        ]
        values, places = zip(*best, strict=True)
        return jnp.concatenate(values, axis), jnp.concatenate(places, axis)

    return _pool(x, spatial, along)


def _at(marked: Marked, axis: int, i: int) -> Marked:
    values, places = (lax.slice_in_dim(a, i, i + 1, axis=axis) for a in marked)
    return values, places


def _spatial(x: Any, sizes: Sequence[Any]) -> int:
    if isinstance(x, ChannelsLast):
        return x.array.ndim - 2
    return len(sizes) if len(sizes) > 1 else 1


def _pool(x: Any, spatial: int, along: Any) -> Any:
    if not isinstance(x, ChannelsLast) and x.ndim == spatial + 1:  # one example without a batch axis
        values, places = _pool(x[None], spatial, along)
        return values.logical[0], places.logical[0]
    array = channels_last(x)
    shape = (1, *array.shape[1:-1], 1)
    flat = lax.iota(jnp.int32, array[0, ..., 0].size).reshape(shape)
    marked = (array, jnp.broadcast_to(flat, array.shape))
    # last axis first: among equals the derivative goes to the first in row-major order, as in torch
    for axis in range(spatial, 0, -1):
        marked = along(marked, axis)
    return ChannelsLast(marked[0]), ChannelsLast(marked[1])


def _lowest(x: Array) -> Any:
    return -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min


def _first_max(parts: Sequence[Marked]) -> Marked:
    best, place = parts[0]
    for value, at in parts[1:]:
        wins = (value > best) | (value != value)  # a NaN wins and stays, as in torch
        best, place = jnp.where(wins, value, best), jnp.where(wins, at, place)
    return best, place


@lowers(aten.max_unpool2d.default, aten.max_unpool3d.default)
def max_unpool(x: Array, indices: Array, output_size: Sequence[int], *_sizes: Any) -> Array:
    """Values put back where a pooling found them, zeros elsewhere."""
    spatial = len(output_size)
    lead = x.shape[: x.ndim - spatial]
    values, places = x.reshape(*lead, -1), indices.reshape(*lead, -1)
    out = jnp.zeros((*lead, math.prod(output_size)), x.dtype)
    return jnp.put_along_axis(out, places, values, -1, inplace=False).reshape(*lead, *output_size)
