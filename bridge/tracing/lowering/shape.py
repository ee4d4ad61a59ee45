"""Operators that move elements about: views, permutations, slices, joins, padding, creation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Array

from bridge.tracing.errors import OutOfRangeError
from bridge.tracing.lowering.registry import ChannelsLast, channels_last, logical, lowers

aten = torch.ops.aten


@lowers(aten.view.default, aten.reshape.default, aten._unsafe_view.default)
def view(x: Array, size: Sequence[int]) -> Array:
    """`x` with another shape."""
    known = math.prod(n for n in size if n != -1)
    return x.reshape(tuple(x.size // known if n == -1 and known else n for n in size))  # JAX wants no -1 of none


@lowers(aten.flatten.using_ints)
def flatten(x: Array, start_dim: int = 0, end_dim: int = -1) -> Array:
    """`x` with the axes from `start_dim` to `end_dim` joined."""
    if x.ndim == 0:
        return x.reshape(1)
    start, end = start_dim % x.ndim, end_dim % x.ndim
    return x.reshape((*x.shape[:start], math.prod(x.shape[start : end + 1]), *x.shape[end + 1 :]))


@lowers(aten.unflatten.int)
def unflatten(x: Array, dim: int, sizes: Sequence[int]) -> Array:
    """`x` with the axis `dim` parted into `sizes`, one of which may be -1."""
    dim %= x.ndim
    known = [s for s in sizes if s != -1]
    whole = [x.shape[dim] // math.prod(known) if s == -1 else s for s in sizes]
    return x.reshape((*x.shape[:dim], *whole, *x.shape[dim + 1 :]))


@lowers(aten.permute.default)
def permute(x: Array, dims: Sequence[int]) -> Array:
    """`x` with its axes in the order `dims`."""
    return jnp.transpose(x, tuple(dims))


@lowers(aten.transpose.int, aten.swapaxes.default)
def transpose(x: Array, dim0: int, dim1: int) -> Array:
    """`x` with two axes swapped."""
    return jnp.swapaxes(x, dim0, dim1) if x.ndim else x


@lowers(aten.t.default)
def t(x: Array) -> Array:
    """The transpose of a matrix; a vector stays."""
    return x.T


@lowers(aten.unsqueeze.default)
def unsqueeze(x: Array, dim: int) -> Array:
    """`x` with a new axis at `dim`."""
    return jnp.expand_dims(x, dim)


@lowers(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims)
def squeeze(x: Array, dim: int | Sequence[int] | None = None) -> Array:
    """`x` without the named axes of length one."""
    dims = range(x.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    return jnp.squeeze(x, tuple({d % x.ndim for d in dims if x.shape[d] == 1})) if x.ndim else x


@lowers(aten.expand.default)
def expand(x: Array, size: Sequence[int], implicit: bool = False) -> Array:
    """`x` broadcast to `size`, where -1 keeps an axis."""
    lead = len(size) - x.ndim
    shape = [x.shape[i - lead] if s == -1 else s for i, s in enumerate(size)]
    return jnp.broadcast_to(x, tuple(shape))


@lowers(aten.cat.default, layout="own")
def cat(tensors: Sequence[Any], dim: int = 0) -> Any:
    """Arrays joined along an axis; channels-last ones stay so."""
    first = next((x for x in tensors if isinstance(x, ChannelsLast)), None)
    if first is not None and all(logical_ndim(x) == first.array.ndim for x in tensors):
        ndim = first.array.ndim
        axis = {0: 0, 1: ndim - 1}.get(dim % ndim, dim % ndim - 1)
        return ChannelsLast(jnp.concatenate([channels_last(x) for x in tensors], axis))
    arrays = [logical(x) for x in tensors]
    # torch skips empty vectors beside arrays of any rank
    kept = [x for x in arrays if x.shape != (0,)] or arrays[:1]
    return jnp.concatenate(kept, dim)


def logical_ndim(x: Any) -> int:
    """The number of axes of a value in either layout."""
    return x.array.ndim if isinstance(x, ChannelsLast) else x.ndim


@lowers(aten.stack.default)
def stack(tensors: Sequence[Array], dim: int = 0) -> Array:
    """Arrays joined along a new axis."""
    return jnp.stack(tensors, dim)


@lowers(aten.split_with_sizes.default)
def split_with_sizes(x: Array, split_sizes: Sequence[int], dim: int = 0) -> list[Array]:
    """`x` cut into pieces of the given sizes."""
    return jnp.split(x, np.cumsum(split_sizes)[:-1].tolist(), dim)


@lowers(aten.split.Tensor)
def split(x: Array, split_size: int, dim: int = 0) -> list[Array]:
    """`x` cut into pieces of one size; the last may be smaller."""
    return jnp.split(x, list(range(split_size, x.shape[dim], split_size)), dim) if x.shape[dim] else [x]


@lowers(aten.chunk.default)
def chunk(x: Array, chunks: int, dim: int = 0) -> list[Array]:
    """`x` cut into at most `chunks` pieces."""
    return split(x, max(1, -(-x.shape[dim] // chunks)), dim)


@lowers(aten.unbind.int)
def unbind(x: Array, dim: int = 0) -> list[Array]:
    """The slices of `x` along an axis."""
    return [jnp.take(x, i, dim) for i in range(x.shape[dim])]


@lowers(aten.slice.Tensor)
def slice_(x: Array, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Array:
    """`x[start:end:step]` along `dim`."""
    return x[_slice(x, dim, start, end, step)]


@lowers(aten.slice_scatter.default)
def slice_scatter(
    x: Array, src: Array, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Array:
    """`x` with `x[start:end:step]` along `dim` replaced."""
    return x.at[_slice(x, dim, start, end, step)].set(src)


def _slice(x: Array, dim: int, start: int | None, end: int | None, step: int) -> tuple[slice, ...]:
    return (slice(None),) * (dim % x.ndim) + (slice(start, end, step),)


def _check_place(x: Array, dim: int, index: int) -> None:
    if not -x.shape[dim] <= index < x.shape[dim]:
        raise OutOfRangeError(f"x[{index}] is out of range for an axis of length {x.shape[dim]}.")


@lowers(aten.select.int)
def select(x: Array, dim: int, index: int) -> Array:
    """`x[index]` along `dim`."""
    _check_place(x, dim, index)
    return x[(slice(None),) * (dim % x.ndim) + (index,)]


@lowers(aten.select_scatter.default)
def select_scatter(x: Array, src: Array, dim: int, index: int) -> Array:
    """`x` with `x[index]` along `dim` replaced."""
    _check_place(x, dim, index)
    return x.at[(slice(None),) * (dim % x.ndim) + (index,)].set(src)


@lowers(aten.flip.default)
def flip(x: Array, dims: Sequence[int]) -> Array:
    """`x` with axes reversed."""
    return jnp.flip(x, tuple(dims))


@lowers(aten.roll.default)
def roll(x: Array, shifts: Sequence[int], dims: Sequence[int] = ()) -> Array:
    """`x` shifted around; without axes, as one vector."""
    if not dims:
        return jnp.roll(x.reshape(-1), shifts[0]).reshape(x.shape)
    return jnp.roll(x, tuple(shifts), tuple(dims))


@lowers(aten.repeat.default)
def repeat(x: Array, repeats: Sequence[int]) -> Array:
    """`x` tiled."""
    return jnp.tile(x, tuple(repeats))


@lowers(aten.constant_pad_nd.default)
def constant_pad(x: Array, pad: Sequence[int], value: float = 0) -> Array:
    """`x` padded from the last axis on; negative amounts crop."""
    widths = [(0, 0)] * x.ndim
    for i in range(len(pad) // 2):
        widths[-1 - i] = (pad[2 * i], pad[2 * i + 1])
    x = x[tuple(slice(max(-a, 0), n - max(-b, 0)) for n, (a, b) in zip(x.shape, widths, strict=True))]
    return jnp.pad(x, [(max(a, 0), max(b, 0)) for a, b in widths], constant_values=value)


@lowers(aten.pad.default)
def pad(x: Array, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Array:
    """`x` padded by a constant, by reflection, by its edge or around."""
    if mode == "constant":
        return constant_pad(x, pad, value or 0)
    widths = [(0, 0)] * x.ndim
    for i in range(len(pad) // 2):
        widths[-1 - i] = (pad[2 * i], pad[2 * i + 1])
    if any(w < 0 for pair in widths for w in pair):
        raise NotImplementedError(f"Negative padding {list(pad)} with mode={mode!r}. Slice the tensor first.")
    return jnp.pad(x, widths, mode={"reflect": "reflect", "replicate": "edge", "circular": "wrap"}[mode])


@lowers(aten.full.default)
def full(size: Sequence[int], fill_value: float, dtype: Any = None) -> Array:
    """An array full of one value."""
    return jnp.full(tuple(size), fill_value, dtype)


@lowers(aten.full_like.default)
def full_like(x: Array, fill_value: float, dtype: Any = None) -> Array:
    """An array shaped like `x`, full of one value."""
    return jnp.full(x.shape, fill_value, dtype or x.dtype)


@lowers(aten.zeros.default, aten.empty.memory_format)
def zeros(size: Sequence[int], dtype: Any = None) -> Array:
    """Zeros."""
    return jnp.zeros(tuple(size), dtype)


@lowers(aten.ones.default)
def ones(size: Sequence[int], dtype: Any = None) -> Array:
    """Ones."""
    return jnp.ones(tuple(size), dtype)


@lowers(aten.zeros_like.default, aten.empty_like.default)
def zeros_like(x: Array, dtype: Any = None) -> Array:
    """Zeros shaped like `x`."""
    return jnp.zeros(x.shape, dtype or x.dtype)


@lowers(aten.ones_like.default)
def ones_like(x: Array, dtype: Any = None) -> Array:
    """Ones shaped like `x`."""
    return jnp.ones(x.shape, dtype or x.dtype)


@lowers(aten.scalar_tensor.default)
def scalar_tensor(value: float, dtype: Any = None) -> Array:
    """An array without axes."""
    return jnp.asarray(value, dtype)


@lowers(aten.arange.default, aten.arange.start, aten.arange.start_step)
def arange(*bounds: float, dtype: Any = None) -> Array:
    """Evenly spaced numbers."""
    return jnp.arange(*bounds, dtype=dtype)


@lowers(aten.empty_permuted.default)
def empty_permuted(size: Sequence[int], physical_layout: Sequence[int], dtype: Any = None) -> Array:
    """Zeros, whatever the order in memory."""
    return jnp.zeros(tuple(size), dtype)


@lowers(aten.copy.default)
def copy(x: Array, src: Array) -> Array:
    """`src` in the shape and dtype of `x`."""
    return jnp.broadcast_to(src, x.shape).astype(x.dtype)


@lowers(aten.triu_indices.default)
def triu_indices(row: int, col: int, offset: int = 0, dtype: Any = None) -> Array:
    """Rows and columns of the upper triangle."""
    return jnp.asarray(np.stack(np.triu_indices(row, offset, col)), dtype)


@lowers(aten.tril_indices.default)
def tril_indices(row: int, col: int, offset: int = 0, dtype: Any = None) -> Array:
    """Rows and columns of the lower triangle."""
    return jnp.asarray(np.stack(np.tril_indices(row, offset, col)), dtype)
