"""Windows and channels moved about: unfold, fold, pixel and channel shuffles."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
import torch
from jax import lax
from jaxtyping import Array

from bridge.tracing.lowering.convolution import offsets, per_axis
from bridge.tracing.lowering.registry import lowers

aten = torch.ops.aten


@lowers(aten.im2col.default)
def im2col(
    x: Array, kernel_size: Sequence[int], dilation: Sequence[int], padding: Sequence[int], stride: Sequence[int]
) -> Array:
    """Every window of the image as a column: `nn.Unfold`."""
    if x.ndim == 3:
        return im2col(x[None], kernel_size, dilation, padding, stride)[0]
    kernel, holes, widths, steps = (per_axis(v, 2) for v in (kernel_size, dilation, padding, stride))
    x = jnp.pad(x, [(0, 0), (0, 0), *((p, p) for p in widths)])
    sizes = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(x.shape[2:], kernel, steps, holes, strict=True)]
    parts = []
    for offset in offsets(kernel):
        a, b = (i * d for i, d in zip(offset, holes, strict=True))
        parts.append(x[:, :, a : a + sizes[0] * steps[0] : steps[0], b : b + sizes[1] * steps[1] : steps[1]])
    parts = [part[:, :, : sizes[0], : sizes[1]] for part in parts]
    return jnp.stack(parts, 2).reshape(x.shape[0], -1, sizes[0] * sizes[1])


@lowers(aten.col2im.default)
def col2im(
    x: Array,
    output_size: Sequence[int],
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Array:
    """Columns added back into an image: `nn.Fold`."""
    if x.ndim == 2:
        return col2im(x[None], output_size, kernel_size, dilation, padding, stride)[0]
    kernel, holes, widths, steps = (per_axis(v, 2) for v in (kernel_size, dilation, padding, stride))
    padded = [n + 2 * p for n, p in zip(output_size, widths, strict=True)]
    sizes = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(padded, kernel, steps, holes, strict=True)]
    columns = x.reshape(x.shape[0], -1, kernel[0] * kernel[1], *sizes)
    out = jnp.zeros((), x.dtype)
    for i, offset in enumerate(offsets(kernel)):
        starts = [o * d for o, d in zip(offset, holes, strict=True)]
        ends = [n - a - (m - 1) * s - 1 for n, a, m, s in zip(padded, starts, sizes, steps, strict=True)]
        widening = [(a, b, s - 1) for a, b, s in zip(starts, ends, steps, strict=True)]
        out = out + lax.pad(columns[:, :, i], jnp.zeros((), x.dtype), [(0, 0, 0), (0, 0, 0), *widening])
    return out[:, :, widths[0] : padded[0] - widths[0], widths[1] : padded[1] - widths[1]]


@lowers(aten.unfold.default)
def unfold(x: Array, dimension: int, size: int, step: int) -> Array:
    """Overlapping slices along an axis, each laid out on a new last axis."""
    if x.ndim == 0:
        return x.reshape(1)
    axis = dimension % x.ndim
    starts = np.arange(0, x.shape[axis] - size + 1, step)
    windows = jnp.take(x, starts[:, None] + np.arange(size), axis)  # (..., windows, size, ...)
    return jnp.moveaxis(windows, axis + 1, -1)


@lowers(aten.pixel_shuffle.default)
def pixel_shuffle(x: Array, upscale_factor: int) -> Array:
    """Channels moved into space."""
    *lead, c, h, w = x.shape
    r = upscale_factor
    x = x.reshape(*lead, c // r**2, r, r, h, w)
    x = jnp.moveaxis(x, (-4, -3), (-3, -1))  # (..., c, h, r, w, r)
    return x.reshape(*lead, c // r**2, h * r, w * r)


@lowers(aten.pixel_unshuffle.default)
def pixel_unshuffle(x: Array, downscale_factor: int) -> Array:
    """Space moved into channels."""
    *lead, c, h, w = x.shape
    r = downscale_factor
    x = x.reshape(*lead, c, h // r, r, w // r, r)
    x = jnp.moveaxis(x, (-3, -1), (-4, -3))  # (..., c, r, r, h, w)
    return x.reshape(*lead, c * r**2, h // r, w // r)


@lowers(aten.channel_shuffle.default)
def channel_shuffle(x: Array, groups: int) -> Array:
    """The channels of the groups interleaved."""
    n, c, *spatial = x.shape
    return jnp.swapaxes(x.reshape(n, groups, c // groups, *spatial), 1, 2).reshape(x.shape)
