"""Attention, whole: its decompositions branch on shapes and devices, and JAX needs only two products."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch
from jaxtyping import Array

from bridge.tracing.lowering.registry import lowers

aten = torch.ops.aten


@lowers(aten.scaled_dot_product_attention.default)
def attention(
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Array | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Array:
    r"""$\operatorname{softmax}(s\,Q K^\top + M)\,V$; a row whose keys are all masked gives zeros, as in torch."""
    if dropout_p > 0:
        raise NotImplementedError("Attention with dropout_p > 0 is random. Pass 0 when the module is not training.")
    if enable_gqa:
        key = jnp.repeat(key, query.shape[-3] // key.shape[-3], -3)
        value = jnp.repeat(value, query.shape[-3] // value.shape[-3], -3)
    wide = jnp.promote_types(query.dtype, jnp.float32)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = jnp.matmul(query * factor, jnp.swapaxes(key, -1, -2), preferred_element_type=wide)  # (..., L, S)
    if is_causal:
        attn_mask = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    if attn_mask is None:
        weights = jax.nn.softmax(scores, -1)
    elif attn_mask.dtype == jnp.bool_:
        weights = _masked_softmax(jnp.where(attn_mask, scores, -jnp.inf))
    else:
        weights = _masked_softmax(scores + attn_mask)
    return jnp.matmul(weights.astype(value.dtype), value)


@lowers(aten._safe_softmax.default)
def safe_softmax(x: Array, dim: int, dtype: object = None) -> Array:
    """Softmax where a row of minus infinity gives zeros."""
    return jnp.moveaxis(_masked_softmax(jnp.moveaxis(x, dim, -1)), -1, dim)


def _masked_softmax(scores: Array) -> Array:
    alive = jnp.any(scores != -jnp.inf, -1, keepdims=True)
    # `where` on both sides: the derivative of a softmax over nothing but minus infinity would be NaN
    return jnp.where(alive, jax.nn.softmax(jnp.where(alive, scores, 0), -1), 0)
