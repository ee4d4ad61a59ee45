"""Tables that are looked up by row."""

from __future__ import annotations

import jax.numpy as jnp
import torch
from jax import lax
from jaxtyping import Array

from bridge.tracing.lowering.indexing import in_range
from bridge.tracing.lowering.registry import lowers

aten = torch.ops.aten


@lowers(aten.embedding.default)
def embedding(
    weight: Array, indices: Array, padding_idx: int = -1, scale_grad_by_freq: bool = False, sparse: bool = False
) -> Array:
    """Rows of `weight`."""
    _refuse_frequencies(scale_grad_by_freq)
    rows = in_range(indices, weight.shape[0], "embedding")
    if padding_idx < 0:
        return jnp.take(weight, rows, axis=0, mode="fill")
    padding, count = rows == padding_idx, weight.shape[0]
    # torch never trains that row: it is not looked up, and added where it would be found
    found = jnp.take(weight, jnp.where(padding, count, rows), axis=0, mode="fill", fill_value=0)
    known = jnp.where((rows < count)[..., None], jnp.zeros((), weight.dtype), jnp.nan)
    return found + jnp.where(padding[..., None], lax.stop_gradient(weight)[padding_idx], known)


def _refuse_frequencies(scale_grad_by_freq: bool) -> None:
    if scale_grad_by_freq:
        raise NotImplementedError(
            "scale_grad_by_freq=True divides gradients by how often an index occurs in the batch, which is no "
            "derivative of what forward computes. Switch it off: module.scale_grad_by_freq = False."
        )


@lowers(aten.embedding_bag.default, aten.embedding_bag.padding_idx, aten._embedding_bag_forward_only.default)
def embedding_bag(
    weight: Array,
    indices: Array,
    offsets: Array,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Array | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> tuple[Array, Array, Array, Array]:
    """The sum (mode 0), mean (1) or maximum (2) of the rows in each bag."""
    _refuse_frequencies(scale_grad_by_freq)
    bags = offsets.shape[0] - include_last_offset
    owner = jnp.searchsorted(offsets[:bags], jnp.arange(indices.shape[0]), side="right") - 1
    kept = jnp.ones(indices.shape, bool) if padding_idx is None or padding_idx < 0 else indices != padding_idx
    rows = jnp.take(weight, in_range(indices, weight.shape[0], "embedding_bag"), axis=0, mode="fill")
    rows = rows if per_sample_weights is None else rows * per_sample_weights[:, None]
    counts = jnp.zeros(bags, weight.dtype).at[owner].add(kept.astype(weight.dtype))[:, None]
    if mode == 2:
        low = jnp.full((bags, weight.shape[1]), -jnp.inf, weight.dtype)
        out = low.at[owner].max(jnp.where(kept[:, None], rows, -jnp.inf))
        out = jnp.where(counts > 0, out, 0)
    else:
        out = jnp.zeros((bags, weight.shape[1]), weight.dtype).at[owner].add(jnp.where(kept[:, None], rows, 0))
        out = out / jnp.maximum(counts, 1) if mode == 1 else out
    # the other three results serve torch's backward pass alone
    return out, jnp.zeros(0, jnp.int32), jnp.zeros(0, jnp.int32), jnp.zeros(0, jnp.int32)
