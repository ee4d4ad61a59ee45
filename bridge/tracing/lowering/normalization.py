"""Normalisation layers, whole: one formula each instead of the dozen operators torch would decompose them into."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from jax import lax
from jaxtyping import Array

from bridge.tracing.lowering.registry import ChannelsLast, Convolved, lowers, spread

aten = torch.ops.aten

# torch returns empty statistics beside the result in eval mode
_NO_STATISTICS = (np.zeros(0, np.float32), np.zeros(0, np.float32))


@lowers(aten.batch_norm.default, layout="own")
def batch_norm(
    x: Any,
    weight: Array | None,
    bias: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Any:
    """Channels normalised by their running statistics, or by the batch's where there are none."""
    array: Array | None = None
    if training or running_mean is None or running_var is None:
        array, axis = _channels(x)
        wide, axes = _at_least_float32(array), tuple(i for i in range(array.ndim) if i != axis)
        running_mean, running_var = jnp.mean(wide, axes), jnp.var(wide, axes)
    scale = lax.rsqrt(_at_least_float32(running_var) + eps)
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    if array is None and isinstance(x, Convolved) and x.can_scale:
        return x.scaled(scale, shift)
    array, axis = _channels(x)
    return _like(x, _affine(_at_least_float32(array), scale, shift, axis).astype(array.dtype))


@lowers(aten._native_batch_norm_legit_no_training.default, layout="own")
def batch_norm_no_training(
    x: Any, weight: Any, bias: Any, running_mean: Array, running_var: Array, momentum: float, eps: float
) -> Any:
    """Batch norm in eval mode, as functionalisation spells it."""
    return batch_norm(x, weight, bias, running_mean, running_var, False, momentum, eps), *_NO_STATISTICS


@lowers(aten._native_batch_norm_legit.no_stats, layout="own")
def batch_norm_no_stats(x: Any, weight: Any, bias: Any, training: bool, momentum: float, eps: float) -> Any:
    """Batch norm by the statistics of the batch."""
    return batch_norm(x, weight, bias, None, None, True, momentum, eps), *_NO_STATISTICS


@lowers(aten.layer_norm.default)
def layer_norm(
    x: Array,
    normalized_shape: Sequence[int],
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Array:
    """The last axes normalised to mean zero and variance one."""
    axes = tuple(range(-len(normalized_shape), 0))
    out = _standardize(_at_least_float32(x), axes, eps)
    return _affine_last(out, weight, bias, axes).astype(x.dtype)


@lowers(aten.group_norm.default, layout="own")
def group_norm(
    x: Any,
    num_groups: int,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Any:
    """Groups of channels normalised within each example."""
    array, axis = _channels(x)
    shape = array.shape
    split = (*shape[:axis], num_groups, shape[axis] // num_groups, *shape[axis + 1 :])
    grouped = _at_least_float32(array).reshape(split)
    axes = tuple(i for i in range(1, len(split)) if i != axis)
    out = _standardize(grouped, axes, eps).reshape(shape)
    if weight is not None or bias is not None:
        out = _affine(out, weight, bias, axis)
    return _like(x, out.astype(array.dtype))


@lowers(aten.instance_norm.default, layout="own")
def instance_norm(
    x: Any,
    weight: Array | None,
    bias: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Any:
    """Each channel of each example normalised, or by running statistics where the layer keeps them."""
    if not use_input_stats:
        return batch_norm(x, weight, bias, running_mean, running_var, False, momentum, eps)
    array, axis = _channels(x)
    out = _standardize(_at_least_float32(array), tuple(i for i in range(1, array.ndim) if i != axis), eps)
    return _like(x, _affine(out, weight, bias, axis).astype(array.dtype))


@lowers(aten.rms_norm.default)
def rms_norm(x: Array, normalized_shape: Sequence[int], weight: Array | None = None, eps: float | None = None) -> Array:
    """The last axes divided by their root mean square."""
    wide = _at_least_float32(x)
    eps = float(jnp.finfo(x.dtype).eps) if eps is None else eps
    axes = tuple(range(-len(normalized_shape), 0))
    out = wide * lax.rsqrt(jnp.mean(jnp.square(wide), axes, keepdims=True) + eps)
    return _affine_last(out, weight, None, axes).astype(x.dtype)


def _standardize(x: Array, axes: tuple[int, ...], eps: float) -> Array:
    centred = x - jnp.mean(x, axes, keepdims=True)
    return centred * lax.rsqrt(jnp.mean(jnp.square(centred), axes, keepdims=True) + eps)


def _affine(x: Array, scale: Array | None, shift: Array | None, axis: int) -> Array:
    def wide(channels: Array) -> Array:
        return spread(channels, x.shape) if axis == x.ndim - 1 else channels.reshape(-1, *(1,) * (x.ndim - 1 - axis))

    x = x if scale is None else x * wide(scale)
    return x if shift is None else x + wide(shift)


def _affine_last(x: Array, scale: Array | None, shift: Array | None, axes: tuple[int, ...]) -> Array:
    """A number for each element of the last axes, which are one axis of channels for :func:`_affine`."""
    channels = math.prod(x.shape[axis] for axis in axes)
    flat = x.reshape(*x.shape[: -len(axes)], channels)
    scale, shift = (None if value is None else value.reshape(channels) for value in (scale, shift))
    return _affine(flat, scale, shift, flat.ndim - 1).reshape(x.shape)


def _channels(x: Any) -> tuple[Array, int]:
    """The array, and the axis that holds its channels."""
    return (x.array, x.array.ndim - 1) if isinstance(x, ChannelsLast) else (x, 1)


def _like(x: Any, array: Array) -> Any:
    return ChannelsLast(array) if isinstance(x, ChannelsLast) else array


def _at_least_float32(x: Array) -> Array:
    # torch accumulates half precision in float32 inside these layers
    return x.astype(jnp.float32) if x.dtype in (jnp.bfloat16, jnp.float16) else x
