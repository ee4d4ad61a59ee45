"""Reductions along axes, and running sums."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import torch
from jax import lax
from jaxtyping import Array

from bridge.tracing.lowering.registry import ChannelsLast, logical, lowers
from bridge.tracing.lowering.slopes import absolute

aten = torch.ops.aten
Dims = int | Sequence[int] | None


def _axes(dim: Dims) -> int | tuple[int, ...] | None:
    """Torch's axes for JAX: none and the empty list both mean all of them."""
    if dim is None or isinstance(dim, int):
        return dim
    return tuple(dim) or None


@lowers(aten.sum.default, aten.sum.dim_IntList)
def sum_(x: Array, dim: Dims = None, keepdim: bool = False, *, dtype: Any = None) -> Array:
    """The sum along the axes."""
    return jnp.sum(x, _axes(dim), dtype=dtype, keepdims=keepdim)


@lowers(aten.mean.default, aten.mean.dim, layout="own")
def mean(x: Any, dim: Dims = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """The mean along the axes; that over the spatial axes stays in channels-last."""
    if isinstance(x, ChannelsLast) and isinstance(dim, Sequence):
        ndim = x.array.ndim
        if sorted(d % ndim for d in dim) == list(range(2, ndim)):
            out = jnp.mean(x.array, tuple(range(1, ndim - 1)), dtype=dtype, keepdims=keepdim)
            return ChannelsLast(out) if keepdim else out  # (N, C) is the same in either order
    return jnp.mean(logical(x), _axes(dim), dtype=dtype, keepdims=keepdim)


@lowers(aten.prod.default, aten.prod.dim_int)
def prod(x: Array, dim: int | None = None, keepdim: bool = False, *, dtype: Any = None) -> Array:
    """The product along an axis."""
    return jnp.prod(x, dim, dtype=dtype, keepdims=keepdim)


@lowers(aten.amax.default)
def amax(x: Array, dim: Dims = (), keepdim: bool = False) -> Array:
    """The maximum along the axes; equals share the derivative."""
    return _largest(x, _axes(dim), keepdim)


@lowers(aten.amin.default)
def amin(x: Array, dim: Dims = (), keepdim: bool = False) -> Array:
    """The minimum along the axes; equals share the derivative."""
    return _smallest(x, _axes(dim), keepdim)


def _largest(x: Array, axes: Any, keepdim: bool) -> Array:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.max(x, axes, keepdims=keepdim)
    chosen = range(x.ndim) if axes is None else (axes,) if isinstance(axes, int) else axes
    chosen = sorted(axis % x.ndim for axis in chosen)
    kept = [axis for axis in range(x.ndim) if axis not in chosen]
    rows = jnp.transpose(x, (*kept, *chosen)).reshape(*(x.shape[axis] for axis in kept), -1)
    shape = [1 if axis in chosen else n for axis, n in enumerate(x.shape)]
    return _row_max(rows).reshape(shape if keepdim else [x.shape[axis] for axis in kept])


def _smallest(x: Array, axes: Any, keepdim: bool) -> Array:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.min(x, axes, keepdims=keepdim)
    return -_largest(-x, axes, keepdim)


@jax.custom_jvp
def _row_max(x: Array) -> Array:
    return jnp.max(x, -1)


@_row_max.defjvp
def _(primals: Any, tangents: Any) -> Any:
    """By places, which are integers: XLA may round `x` otherwise where it compares it than where it finds the maximum.

    JAX's own derivative then divides by no element at all, or by others than it takes.
    """
    (x,), (t,) = primals, tangents
    first = jax.nn.one_hot(jnp.argmax(x, -1), x.shape[-1], dtype=x.dtype)
    equal = (x == jnp.max(x, -1, keepdims=True)).astype(x.dtype)
    count = jnp.sum(equal, -1, keepdims=True)
    weights = jnp.where(count > 1, equal / count, first)  # equals share the derivative
    return jnp.max(x, -1), jnp.sum(weights * t, -1)


@lowers(aten.max.default)
def max_all(x: Array) -> Array:
    """The maximum of all elements."""
    return _largest(x, None, False)


@lowers(aten.min.default)
def min_all(x: Array) -> Array:
    """The minimum of all elements."""
    return _smallest(x, None, False)


@lowers(aten.max.dim)
def max_dim(x: Array, dim: int, keepdim: bool = False) -> tuple[Array, Array]:
    """The maximum along an axis and where it is; the derivative goes to that element alone."""
    return _extremum(x, jnp.argmax(x, dim, keepdims=True), dim, keepdim)


@lowers(aten.min.dim)
def min_dim(x: Array, dim: int, keepdim: bool = False) -> tuple[Array, Array]:
    """The minimum along an axis and where it is; the derivative goes to that element alone."""
    return _extremum(x, jnp.argmin(x, dim, keepdims=True), dim, keepdim)


def _extremum(x: Array, at: Array, dim: int, keepdim: bool) -> tuple[Array, Array]:
    values = jnp.take_along_axis(x, at, dim)
    return (values, at) if keepdim else (jnp.squeeze(values, dim), jnp.squeeze(at, dim))


@lowers(aten.argmax.default)
def argmax(x: Array, dim: int | None = None, keepdim: bool = False) -> Array:
    """Where the maximum is."""
    return jnp.argmax(x, dim, keepdims=keepdim)


@lowers(aten.argmin.default)
def argmin(x: Array, dim: int | None = None, keepdim: bool = False) -> Array:
    """Where the minimum is."""
    return jnp.argmin(x, dim, keepdims=keepdim)


@lowers(aten.any.default, aten.any.dim, aten.any.dims)
def any_(x: Array, dim: Dims = None, keepdim: bool = False) -> Array:
    """Whether some element is nonzero."""
    return jnp.any(x, _axes(dim), keepdims=keepdim)


@lowers(aten.all.default, aten.all.dim, aten.all.dims)
def all_(x: Array, dim: Dims = None, keepdim: bool = False) -> Array:
    """Whether all elements are nonzero."""
    return jnp.all(x, _axes(dim), keepdims=keepdim)


@lowers(aten.var.correction)
def var(x: Array, dim: Dims = None, *, correction: float | None = None, keepdim: bool = False) -> Array:
    """The variance along the axes, over `n - correction` (1 unless told)."""
    axes = _axes(dim)
    chosen = {axis % x.ndim for axis in (range(x.ndim) if axes is None else (axes,) if isinstance(axes, int) else axes)}
    first = tuple(slice(0, 1) if axis in chosen else slice(None) for axis in range(x.ndim))
    count = math.prod(x.shape[axis] for axis in chosen)
    # from the first element, so that what is constant has no variance at all, not one of rounding
    x = x - lax.stop_gradient(x[first]) if count else x
    centred = x - jnp.mean(x, axes, keepdims=True)
    total = jnp.sum(jnp.square(centred), axes, keepdims=keepdim)
    # as torch: infinity or NaN where nothing is left
    return total / jnp.asarray(max(count - (1 if correction is None else correction), 0), total.dtype)


@lowers(aten.std.correction)
def std(x: Array, dim: Dims = None, *, correction: float | None = None, keepdim: bool = False) -> Array:
    """The standard deviation along the axes."""
    return _safe_sqrt(var(x, dim, correction=correction, keepdim=keepdim))


@lowers(aten.var_mean.correction)
def var_mean(
    x: Array, dim: Dims = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Array, Array]:
    """The variance and the mean along the axes."""
    return var(x, dim, correction=correction, keepdim=keepdim), jnp.mean(x, _axes(dim), keepdims=keepdim)


@lowers(aten.logsumexp.default)
def logsumexp(x: Array, dim: Dims, keepdim: bool = False) -> Array:
    r"""$\log \sum e^{x}$ along the axes."""
    return jax.nn.logsumexp(x, _axes(dim), keepdims=keepdim)


@lowers(aten.linalg_vector_norm.default)
def vector_norm(x: Array, ord: float = 2, dim: Dims = None, keepdim: bool = False, *, dtype: Any = None) -> Array:
    r"""$(\sum |x|^p)^{1/p}$ along the axes; its derivative at zero is zero, as in torch."""
    x = x if dtype is None else x.astype(dtype)
    axes = _axes(dim)
    if ord == float("inf"):
        return _largest(absolute(x), axes, keepdim)
    if ord == -float("inf"):
        return _smallest(absolute(x), axes, keepdim)
    if ord == 0:
        return jnp.sum((x != 0).astype(x.dtype), axes, keepdims=keepdim)
    if ord == 1:
        return jnp.sum(absolute(x), axes, keepdims=keepdim)
    if ord == 2:
        return _safe_sqrt(jnp.sum(jnp.square(x), axes, keepdims=keepdim))
    total = jnp.sum(_safe_power(absolute(x), ord), axes, keepdims=keepdim)
    return _safe_power(total, 1 / ord)


def _safe_sqrt(x: Array) -> Array:
    return _safe_power(x, 0.5)


def _safe_power(x: Array, exponent: float) -> Array:
    if exponent < 0:
        return x**exponent
    zero = x == 0
    return jnp.where(zero, 0, jnp.where(zero, 1, x) ** exponent)


@lowers(aten.cumsum.default)
def cumsum(x: Array, dim: int, *, dtype: Any = None) -> Array:
    """The running sum along an axis."""
    return jnp.cumsum(x, dim, dtype=dtype) if x.ndim else x


@lowers(aten.cumprod.default)
def cumprod(x: Array, dim: int, *, dtype: Any = None) -> Array:
    """The running product along an axis."""
    return jnp.cumprod(x, dim, dtype=dtype) if x.ndim else x


@lowers(aten.logcumsumexp.default)
def logcumsumexp(x: Array, dim: int) -> Array:
    """The running log-sum-exp along an axis."""
    return lax.cumlogsumexp(x, dim % x.ndim)
