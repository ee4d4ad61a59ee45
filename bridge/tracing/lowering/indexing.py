"""Reading and writing by index: gather, scatter, masks, sorting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from jax import lax
from jax.core import Tracer
from jaxtyping import Array

from bridge.tracing.errors import OutOfRangeError
from bridge.tracing.lowering.registry import lowers

aten = torch.ops.aten


def in_range(index: Array, size: int, what: str, *, negative: bool = False) -> Array:
    """`index`, where torch takes it; raises for values that are known, else what is out of range reads as NaN.

    Args:
        index: Of any shape.
        size: The length of the axis that it reads.
        what: The operator's name, for the error.
        negative: Whether torch counts negative ones from the end.
    """
    low = -size if negative else 0
    if not isinstance(index, Tracer) and index.size:
        known = np.asarray(index)  # by NumPy, since under `jit` JAX would trace also what it knows
        least, most = int(known.min()), int(known.max())
        if least < low or most >= size:
            raise OutOfRangeError(
                f"{what}: index {least if least < low else most} is out of range for an axis of length {size}. Torch "
                f"takes {low} to {size - 1} here."
            )
    return index if negative else jnp.where(index < 0, size, index)  # JAX would count from the end


@lowers(aten.index.Tensor)
def index(x: Array, indices: Sequence[Array | None]) -> Array:
    """`x[indices]`, where None stands for a whole axis."""
    return x.at[_key(x, indices)].get(mode="fill")


@lowers(aten.index_put.default, aten._unsafe_index_put.default)
def index_put(x: Array, indices: Sequence[Array | None], values: Array, accumulate: bool = False) -> Array:
    """`x` with `x[indices]` replaced or added to; a mask takes a single value."""
    if any(i is not None and i.dtype == jnp.bool_ for i in indices):
        return _put_masked(x, indices, values, accumulate)
    place = x.at[_key(x, indices)]
    return place.add(values) if accumulate else place.set(values)


def _put_masked(x: Array, indices: Sequence[Array | None], values: Array, accumulate: bool) -> Array:
    masks = [i for i in indices if i is not None]
    if len(masks) != 1 or values.size != 1:
        raise NotImplementedError(
            "Writing a tensor through a boolean mask has a shape that depends on the data. Use torch.where(mask, a, b)."
        )
    lead = next(i for i, mask in enumerate(indices) if mask is not None)
    mask = masks[0].reshape((1,) * lead + masks[0].shape + (1,) * (x.ndim - lead - masks[0].ndim))
    value = values.reshape(()).astype(x.dtype)
    return jnp.where(mask, x + value if accumulate else value, x)


@lowers(aten._unsafe_index.Tensor)
def unsafe_index(x: Array, indices: Sequence[Array | None]) -> Array:
    """`x[indices]`, with indices known to be in range."""
    return x[_key(x, indices)]


def _key(x: Array, indices: Sequence[Array | None]) -> tuple[Any, ...]:
    found, axis = [], 0
    for index in indices:
        is_mask = index is not None and index.dtype == jnp.bool_
        found.append(
            slice(None)
            if index is None
            else index
            if is_mask
            else in_range(index, x.shape[axis], "index", negative=True)
        )
        axis += index.ndim if index is not None and is_mask else 1
    return tuple(found)


@lowers(aten.index_select.default)
def index_select(x: Array, dim: int, index: Array) -> Array:
    """The slices of `x` along `dim` that `index` names."""
    if not x.ndim:
        return x
    return jnp.take(x, in_range(jnp.atleast_1d(index), x.shape[dim], "index_select"), axis=dim, mode="fill")


@lowers(aten.gather.default)
def gather(x: Array, dim: int, index: Array, *, sparse_grad: bool = False) -> Array:
    """`x[i][index[i][j]]` and so on: one element for each of `index`."""
    return x.at[grid_of(x, dim, index)].get(mode="fill") if x.ndim else jnp.broadcast_to(x, index.shape)


@lowers(aten.scatter.src, aten.scatter.value, aten.scatter.reduce, aten.scatter.value_reduce)
def scatter(x: Array, dim: int, index: Array, src: Any, *, reduce: str | None = None) -> Array:
    """`x` with elements written at `index` along `dim`."""
    place = x.at[grid_of(x, dim, index)]
    values = src if jnp.ndim(src) == 0 else src[tuple(slice(n) for n in index.shape)]
    return {None: place.set, "add": place.add, "multiply": place.multiply}[reduce](values)


@lowers(aten.scatter_add.default)
def scatter_add(x: Array, dim: int, index: Array, src: Array) -> Array:
    """`x` with elements added at `index` along `dim`."""
    return scatter(x, dim, index, src, reduce="add")


def grid_of(x: Array, dim: int, index: Array) -> tuple[Array, ...]:
    """Places in `x` of what `index` names along `dim`."""
    grid = [lax.broadcasted_iota(index.dtype, index.shape, axis) for axis in range(index.ndim)]
    grid[dim % x.ndim] = in_range(index, x.shape[dim], "gather or scatter")
    return tuple(grid)


def _along(x: Array, dim: int, index: Array) -> tuple[Any, ...]:
    return (slice(None),) * (dim % x.ndim) + (in_range(index, x.shape[dim], "index_add, index_copy or index_fill"),)


@lowers(aten.index_add.default)
def index_add(x: Array, dim: int, index: Array, source: Array, *, alpha: float = 1) -> Array:
    """`x` with slices added at `index` along `dim`."""
    return x.at[_along(x, dim, index)].add(source if alpha == 1 else alpha * source)


@lowers(aten.index_copy.default)
def index_copy(x: Array, dim: int, index: Array, source: Array) -> Array:
    """`x` with slices replaced at `index` along `dim`."""
    return x.at[_along(x, dim, index)].set(source)


@lowers(aten.index_fill.int_Scalar, aten.index_fill.int_Tensor)
def index_fill(x: Array, dim: int, index: Array, value: Any) -> Array:
    """`x` with slices at `index` along `dim` filled with a value."""
    return x.at[_along(x, dim, index)].set(value)


@lowers(aten.take.default)
def take(x: Array, index: Array) -> Array:
    """Elements of `x` seen as one vector."""
    return jnp.take(x.reshape(-1), in_range(index, x.size, "take", negative=True), mode="fill")


@lowers(aten.sort.default, aten.sort.stable)
def sort(x: Array, dim: int = -1, descending: bool = False, *, stable: bool = False) -> tuple[Array, Array]:
    """`x` sorted along an axis, and where each element was."""
    order = jnp.argsort(x, axis=dim, stable=True, descending=descending)
    return jnp.take_along_axis(x, order, dim), order


@lowers(aten.argsort.default)
def argsort(x: Array, dim: int = -1, descending: bool = False) -> Array:
    """The order that sorts `x`; equals keep theirs, which torch leaves open."""
    return jnp.argsort(x, axis=dim, stable=True, descending=descending)


@lowers(aten.argsort.stable)
def argsort_stable(x: Array, *, stable: bool, dim: int = -1, descending: bool = False) -> Array:
    """The order that sorts `x`, in which equals keep theirs."""
    return jnp.argsort(x, axis=dim, stable=True, descending=descending)


@lowers(aten.topk.default)
def topk(x: Array, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Array, Array]:
    """The `k` largest or smallest elements along an axis, and where they are."""
    order = jnp.argsort(x, axis=dim, stable=True, descending=largest)
    order = lax.slice_in_dim(order, 0, k, axis=dim % x.ndim)
    return jnp.take_along_axis(x, order, dim), order


@lowers(aten.kthvalue.default)
def kthvalue(x: Array, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Array, Array]:
    """The `k`-th smallest element along an axis, and where it is."""
    order = jnp.argsort(x, axis=dim, stable=True)
    at = lax.slice_in_dim(order, k - 1, k, axis=dim % x.ndim)
    values = jnp.take_along_axis(x, at, dim)
    return (values, at) if keepdim else (jnp.squeeze(values, dim), jnp.squeeze(at, dim))


@lowers(aten.median.dim)
def median(x: Array, dim: int = -1, keepdim: bool = False) -> tuple[Array, Array]:
    """The lower median along an axis, and where it is."""
    values, places = kthvalue(x, (x.shape[dim] + 1) // 2, dim, True)
    missing = jnp.isnan(x)  # the first NaN is the median, which sorting would put last
    first = jnp.argmax(missing, dim, keepdims=True)
    places = jnp.where(jnp.any(missing, dim, keepdims=True), first.astype(places.dtype), places)
    values = jnp.take_along_axis(x, places, dim)
    return (values, places) if keepdim else (jnp.squeeze(values, dim), jnp.squeeze(places, dim))


@lowers(aten.median.default)
def median_all(x: Array) -> Array:
    """The lower median of all elements."""
    value = lax.stop_gradient(median(x.reshape(-1))[0])
    equal = (x == value) | (jnp.isnan(x) & jnp.isnan(value))  # which share the derivative
    return value + jnp.sum(jnp.where(equal, x - lax.stop_gradient(x), 0)) / jnp.sum(equal).astype(x.dtype)


@lowers(aten.tril.default)
def tril(x: Array, diagonal: int = 0) -> Array:
    """The lower triangle of the last two axes."""
    return jnp.tril(x, diagonal)


@lowers(aten.triu.default)
def triu(x: Array, diagonal: int = 0) -> Array:
    """The upper triangle of the last two axes."""
    return jnp.triu(x, diagonal)


@lowers(aten.diagonal.default)
def diagonal(x: Array, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Array:
    """The diagonal of two axes, last."""
    return jnp.diagonal(x, offset, dim1, dim2)


@lowers(aten.searchsorted.Tensor)
def searchsorted(
    sorted_sequence: Array, x: Array, *, out_int32: bool = False, right: bool = False, side: str | None = None
) -> Array:
    """Where values fall among sorted boundaries."""
    if sorted_sequence.ndim > 1:
        raise NotImplementedError("searchsorted takes a single row of boundaries here, not one for each example.")
    return jnp.searchsorted(sorted_sequence, x, side=side or ("right" if right else "left"))


@lowers(aten.bucketize.Tensor)
def bucketize(x: Array, boundaries: Array, *, out_int32: bool = False, right: bool = False) -> Array:
    """Where values fall among sorted boundaries."""
    return jnp.searchsorted(boundaries, x, side="right" if right else "left")
