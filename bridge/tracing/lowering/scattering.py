"""Elements combined by index: message passing, pooling by segments."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import torch
from jaxtyping import Array

from bridge.tracing.lowering.indexing import grid_of
from bridge.tracing.lowering.registry import lowers

aten = torch.ops.aten

Grid = tuple[Array, ...]


@lowers(aten.scatter_reduce.two)
def scatter_reduce(x: Array, dim: int, index: Array, src: Array, reduce: str, *, include_self: bool = True) -> Array:
    """`x` with elements combined at `index` along `dim`; what `x` holds there counts, or not."""
    if not x.ndim:
        x, index, src = x[None], jnp.atleast_1d(index), jnp.atleast_1d(src)
        return scatter_reduce(x, 0, index, src, reduce, include_self=include_self)[0]
    grid = grid_of(x, dim, index)
    values = src[tuple(slice(n) for n in index.shape)]
    counts = jnp.zeros(x.shape, jnp.int32).at[grid].add(1)
    if reduce in ("sum", "mean"):
        total = (x if include_self else jnp.where(counts > 0, 0, x)).at[grid].add(values)
        count = jnp.maximum(counts + include_self, 1).astype(x.dtype)
        if reduce == "sum":
            return total
        return total / count if jnp.issubdtype(x.dtype, jnp.floating) else total // count
    if reduce == "prod":
        return _product(x if include_self else jnp.where(counts > 0, jnp.ones((), x.dtype), x), values, grid)
    if jnp.issubdtype(x.dtype, jnp.floating):
        sign = 1 if reduce == "amax" else -1
        return sign * _largest(sign * x, sign * values, grid, include_self)
    first = jnp.zeros_like(x).at[grid].set(values)  # a value of each place, in the place of what it held
    place = (x if include_self else jnp.where(counts > 0, first, x)).at[grid]
    return place.max(values) if reduce == "amax" else place.min(values)


@lowers(aten.index_reduce.default)
def index_reduce(x: Array, dim: int, index: Array, source: Array, reduce: str, *, include_self: bool = True) -> Array:
    """`x` with slices combined at `index` along `dim`; what `x` holds there counts, or not."""
    shape = [1] * source.ndim
    shape[dim] = -1
    spread = jnp.broadcast_to(index.reshape(shape), source.shape)
    return scatter_reduce(x, dim, spread, source, reduce, include_self=include_self)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _largest(x: Array, values: Array, grid: Grid, include_self: bool) -> Array:
    return (x if include_self else jnp.where(_met(x, grid), -jnp.inf, x)).at[grid].max(values)


@_largest.defjvp
def _(include_self: bool, primals: Any, tangents: Any) -> Any:
    """Of equal ones each has an equal share; torch counts what `x` holds among them also where it is left out."""
    (x, values, grid), (s, t, _) = primals, tangents
    largest = _largest(x, values, grid, include_self)
    own, others = x == largest, values == largest[grid]
    counted = own if include_self else own & ~_met(x, grid)
    shares = jnp.where(counted, s, 0).at[grid].add(jnp.where(others, t, 0))
    return largest, shares / jnp.maximum(own.astype(x.dtype).at[grid].add(others.astype(x.dtype)), 1)


def _met(x: Array, grid: Grid) -> Array:
    """The places that something is combined with."""
    return jnp.zeros(x.shape, bool).at[grid].set(True)


@jax.custom_jvp
def _product(x: Array, values: Array, grid: Grid) -> Array:
    return x.at[grid].multiply(values)


@_product.defjvp
def _(primals: Any, tangents: Any) -> Any:
    """The derivative to a factor is the product of the others, where factors are zero too."""
    (x, values, grid), (s, t, _) = primals, tangents
    zeros = (x == 0).astype(jnp.int32).at[grid].add((values == 0).astype(jnp.int32))
    rest = _product(jnp.where(x == 0, 1, x), jnp.where(values == 0, 1, values), grid)

    def others(factor: Array, zeros: Array, rest: Array) -> Array:
        is_zero = factor == 0
        return jnp.where(zeros == is_zero, rest / jnp.where(is_zero, 1, factor), 0)

    pushed = others(x, zeros, rest) * s
    return _product(x, values, grid), pushed.at[grid].add(others(values, zeros[grid], rest[grid]) * t)
