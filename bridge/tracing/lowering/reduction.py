"""Reductions along axes, and running sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import torch
from jaxtyping import Array

from bridge.tracing.lowering.registry import ChannelsLast, logical, lowers

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
