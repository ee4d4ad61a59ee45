"""Convolutions, on channels-last data."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import torch
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array

from bridge.tracing.lowering.registry import ChannelsLast, Convolved, channels_last, lowers
from jax_core.xla.backend import platform
from jax_core.xla.convolutions import UNFOLDED, window_slices

aten = torch.ops.aten
Ints = int | Sequence[int]
_GROUP_WIDTH = 32  # input channels of a matrix product, up to which narrower groups are merged
_LARGE_MAP = 64 * 64  # pixels, above which the gradient of XLA's kernel falls from 26 to 80 Gflop/s to 5


def fixed_convolution(
    x: Any, weight: Array, bias: Any = None, stride: Ints = 1, padding: Any = 0, dilation: Ints = 1, groups: int = 1
) -> Any:
    """A convolution that is only run forward: XLA's own kernel, which nothing has to differentiate.

    Of ResNet-18 at 64 pixels (batches of 64, one core) it takes 4 to 9 ms a layer where patches take 6 to 80 and torch
    4 to 23; on a map no larger than the kernel it takes 1,150, and patches 18.
    """
    spatial = weight.ndim - 2
    array = None if not isinstance(x, ChannelsLast) and x.ndim == spatial + 1 else channels_last(x)
    if platform() != "cpu" or array is None or groups > 1 or not _kernel_fits(array, weight):
        out = convolution(x, weight, bias, stride, padding, dilation, groups)
        return out if array is None else ChannelsLast(out.array)
    steps, holes = per_axis(stride, spatial), per_axis(dilation, spatial)
    out = _by_xla(array, weight, steps, _widths(padding, weight.shape[2:], holes), holes, groups)
    return ChannelsLast(out if bias is None else out + bias)


def _kernel_fits(x: Array, weight: Array) -> bool:
    return all(k > 1 for k in weight.shape[2:]) and all(
        n > k for n, k in zip(x.shape[1:-1], weight.shape[2:], strict=True)
    )


@lowers(
    *(aten.conv1d.default, aten.conv1d.padding, aten.conv2d.default, aten.conv2d.padding),
    *(aten.conv3d.default, aten.conv3d.padding),
    layout="own",
    fixed=fixed_convolution,
)
def convolution(
    x: Any, weight: Array, bias: Any = None, stride: Ints = 1, padding: Any = 0, dilation: Ints = 1, groups: int = 1
) -> Any:
    """A convolution over one to three axes."""
    spatial = weight.ndim - 2
    if not isinstance(x, ChannelsLast) and x.ndim == spatial + 1:  # one example without a batch axis
        return convolution(x[None], weight, bias, stride, padding, dilation, groups).logical[0]
    steps, holes = per_axis(stride, spatial), per_axis(dilation, spatial)
    widths = _widths(padding, weight.shape[2:], holes)
    array = channels_last(x)
    way = _way(array, weight, steps, groups)
    return Convolved(lambda weight: way(array, weight, steps, widths, holes, groups), weight, bias, array.dtype)


def _way(x: Array, weight: Array, stride: Sequence[int], groups: int) -> Callable[..., Array]:
    """The one place that chooses how a convolution is computed."""
    if platform() != "cpu":
        return _by_xla
    if _prefers_xla(x, weight, stride, groups):
        return _by_xla_but_weights if math.prod(_sizes(x, stride)) > _LARGE_MAP else _by_xla
    return _by_shifts if groups > 1 and weight.shape[1] == 1 else _by_patches


def _prefers_xla(x: Array, weight: Array, stride: Sequence[int], groups: int) -> bool:
    """Whether XLA's own convolution is the better one on the CPU.

    There (two cores, batches of 8, channels-last, forward and vjp against torch's):
    3 x 3 over 56 x 56 x 64, XLA 0.65 and 0.76 of torch's time, patches 2.1 and 1.2; over 7 x 7 x 512, XLA 0.71 and
    0.55, patches 1.0 and 0.61; 1 x 1, XLA 0.32 and 0.94, patches 0.29 and 0.28. With groups XLA's vjp takes 20 to 30
    times torch's, and vmapped vjps (per-sample Jacobians) turn every XLA convolution into one with groups: so patches
    unless one example's unfolded image passes a million elements.
    """
    if groups > 1 or all(k == 1 for k in weight.shape[2:]):
        return False
    return math.prod(_sizes(x, stride)) * math.prod(weight.shape[1:]) > UNFOLDED


def _sizes(x: Array, stride: Sequence[int]) -> list[int]:
    """About as many outputs along each axis as there will be."""
    return [-(-n // s) for n, s in zip(x.shape[1:-1], stride, strict=True)]


def per_axis(value: Ints, spatial: int) -> tuple[int, ...]:
    """One number per spatial axis, from one number or a list of them."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * spatial if len(values) == 1 else values


def _widths(padding: Any, kernel: Sequence[int], dilation: Sequence[int]) -> tuple[tuple[int, int], ...]:
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if padding == "same":
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    return tuple((p, p) for p in per_axis(padding, len(kernel)))


def _by_patches(
    x: Array,
    weight: Array,
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int,
) -> Array:
    """Shifted slices beside each other along the channels, then one matrix product, batched over groups.

    On small images this is as fast forward as XLA's convolution, twice as fast in a GGN product, and three to four
    times in vmapped Jacobians, whose weight gradients become batched products, not grouped convolutions.
    """
    kernel, outputs = weight.shape[2:], weight.shape[0]
    if groups == 1:
        tiled = tuple(kernel) == tuple(stride) and all(p == (0, 0) for p in padding) and all(d == 1 for d in dilation)
        unfolded = _tiles(x, kernel) if tiled else _join(_slices(x, kernel, stride, padding, dilation))
        matrix = jnp.moveaxis(weight, (0, 1), (-1, -2)).reshape(-1, outputs)  # (K*C, O)
        return jnp.matmul(unfolded, matrix)
    weight, groups = _merged(weight, groups)
    apart = jnp.moveaxis(x.reshape(*x.shape[:-1], groups, -1), -2, 0)  # (G, N, *in, C/G)
    slices = _slices(apart.reshape(-1, *apart.shape[2:]), kernel, stride, padding, dilation)
    unfolded = _join(slices)  # (G*N, *out, K*C/G)
    blocks = weight.reshape(groups, outputs // groups, *weight.shape[1:])
    blocks = jnp.moveaxis(blocks, (1, 2), (-1, -2)).reshape(groups, -1, outputs // groups)  # (G, K*C/G, O/G)
    out = jnp.matmul(unfolded.reshape(groups, -1, blocks.shape[1]), blocks)
    out = out.reshape(groups, x.shape[0], *unfolded.shape[1:-1], -1)
    return jnp.moveaxis(out, 0, -2).reshape(x.shape[0], *unfolded.shape[1:-1], outputs)


def _merged(weight: Array, groups: int) -> tuple[Array, int]:
    """Narrow groups side by side in kernels with zeros between them: wider matrix products, fewer of them."""
    width = weight.shape[1]
    count = max((q for q in range(1, groups + 1) if groups % q == 0 and q * width <= _GROUP_WIDTH), default=1)
    if count == 1:
        return weight, groups
    blocks = weight.reshape(groups // count, count, -1, *weight.shape[1:])  # (G, q, O/q, C/q, *k)
    wide = jnp.einsum("gqoi...,qr->gqori...", blocks, jnp.eye(count, dtype=weight.dtype))
    return wide.reshape(weight.shape[0], count * width, *weight.shape[2:]), groups // count


def _tiles(x: Array, kernel: Sequence[int]) -> Array:
    """Windows side by side, as in the first layer of a vision transformer: no copies of slices, one transpose."""
    n, *sizes, channels = x.shape
    counts = [size // k for size, k in zip(sizes, kernel, strict=True)]
    x = lax.slice(x, [0] * x.ndim, [n, *(c * k for c, k in zip(counts, kernel, strict=True)), channels])
    x = x.reshape(n, *itertools.chain.from_iterable(zip(counts, kernel, strict=True)), channels)
    rank = len(kernel)
    x = jnp.moveaxis(x, range(2, 2 * rank + 1, 2), range(rank + 1, 2 * rank + 1))  # (N, *out, *kernel, C)
    return x.reshape(n, *counts, -1)


def _join(slices: Sequence[Array]) -> Array:
    return slices[0] if len(slices) == 1 else jnp.concatenate(slices, -1)  # (N, *out, K*C)


def _by_shifts(
    x: Array,
    weight: Array,
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int,
) -> Array:
    """Depthwise: shifted slices times one weight per channel, summed, which XLA fuses into a single loop.

    Forward 0.1 to 0.4 of torch's time for 3 x 3 kernels (XLA's convolution 0.6 to 3), vjp 0.1 to 0.6 (0.7 to 3.4).
    """
    repeats = weight.shape[0] // groups
    x = x if repeats == 1 else jnp.repeat(x, repeats, -1)
    slices = _slices(x, weight.shape[2:], stride, padding, dilation)
    # Repeated along an axis (see `spread`) and split together: the transpose sums and joins all taps at once.
    taps, shape = weight.reshape(weight.shape[0], -1).T, slices[0].shape
    rows = jnp.broadcast_to(taps[:, None], (len(slices), *shape[-2:])).reshape(len(slices), -1)
    parts = lax.split(rows, (1,) * len(slices))
    repeated = (jnp.broadcast_to(part, (math.prod(shape[:-2]), part.size)).reshape(shape) for part in parts)
    return functools.reduce(operator.add, map(operator.mul, slices, repeated))


def _slices(
    x: Array,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
) -> list[Array]:
    """What each position of the kernel sees of `x`."""
    if any(p != (0, 0) for p in padding):
        x = jnp.pad(x, [(0, 0), *padding, (0, 0)])
    return window_slices(x, (1, *kernel, 1), (1, *stride, 1), (1, *dilation, 1))


def offsets(kernel: Sequence[int]) -> list[tuple[int, ...]]:
    """The positions within a window, in row-major order."""
    return list(itertools.product(*map(range, kernel)))


def _by_xla(
    x: Array,
    weight: Array,
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int,
) -> Array:
    spatial = "DHW"[-len(stride) :]
    numbers = lax.conv_dimension_numbers(x.shape, weight.shape, (f"N{spatial}C", f"OI{spatial}", f"N{spatial}C"))
    return lax.conv_general_dilated(
        x, weight, stride, padding, rhs_dilation=dilation, dimension_numbers=numbers, feature_group_count=groups
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4, 5))
def _by_xla_but_weights(
    x: Array,
    weight: Array,
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int,
) -> Array:
    """XLA's convolution, whose derivative by the weights goes by patches, unfolded anew in the backward pass."""
    return _by_xla(x, weight, stride, padding, dilation, groups)


@functools.partial(_by_xla_but_weights.defjvp, symbolic_zeros=True)
def _by_xla_but_weights_jvp(stride: Any, padding: Any, dilation: Any, groups: int, primals: Any, tangents: Any) -> Any:
    (x, weight), (dx, dweight) = primals, tangents
    options = (stride, padding, dilation, groups)
    unfold = jax.checkpoint(lambda x, w: _by_patches(x, w, *options))
    terms = [] if isinstance(dx, SymbolicZero) else [_by_xla(dx, weight, *options)]
    terms += [] if isinstance(dweight, SymbolicZero) else [unfold(x, dweight)]
    out = _by_xla_but_weights(x, weight, *options)
    return out, functools.reduce(operator.add, terms) if terms else jnp.zeros_like(out)
