r"""Jacobian rows over a table that is looked up by row: $\sum_s e_{i_s} \bar y_s^\top$, kept as $i_s$ and $\bar y_s$.

The vectors $e_{i_s}$, zero but for a one, are never written out; $i_s = I$, past the last row, stands for a zero one.
Vectors that Jacobian rows meet are cut as ``(I, K, O)``.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Left = Float[Array, "B C S O"]
Rows = Int[Array, "B S"]


def times_rows(left: Left, rows: Rows, stored: Float[Array, "I K O"]) -> Float[Array, "B C K"]:
    """Products with vectors."""
    return jnp.einsum("bcso,bsko->bck", left, picked(stored, rows))


def add_back(left: Left, rows: Rows, part: Float[Array, "I K O"], weights: Float[Array, "B C K"]) -> Array:
    r"""Vectors with $\sum_{bc} w_{bck} J_{bc}$ added."""
    return part.at[rows].add(jnp.einsum("bcso,bck->bsko", left, weights), mode="drop")


def summed(left: Left, rows: Rows) -> Left:
    """For each position the cotangents of all that look up the same row."""
    same = (rows[:, :, None] == rows[:, None, :]).astype(left.dtype)
    return jnp.einsum("bst,bcto->bcso", same, left)


def squares(left: Left, rows: Rows, count: int) -> Float[Array, "I O"]:
    """Sums of squares over all Jacobian rows."""
    each = (left * summed(left, rows)).sum(1)  # (B, S, O): a row that is looked up often, in as many shares
    return jnp.zeros((count, left.shape[-1]), left.dtype).at[rows].add(each, mode="drop")


def gram(left: Left, rows: Rows, weights: Float[Array, "I O"]) -> Float[Array, "B C C"]:
    r"""$J \operatorname{diag}(w) J^\top$ of each example."""
    own = left * picked(weights, rows)[:, None]
    return jnp.einsum("bcso,bdso->bcd", own, summed(left, rows))


def written(left: Left, rows: Rows, count: int) -> Float[Array, "B C I O"]:
    """Jacobian rows with all of their numbers."""
    batch, outputs, _, outs = left.shape
    zero = jnp.zeros((batch, count, outputs, outs), left.dtype)
    at = jnp.arange(batch)[:, None]
    return jnp.swapaxes(zero.at[at, rows].add(jnp.swapaxes(left, 1, 2), mode="drop"), 1, 2)


def picked(stored: Float[Array, "I *K"], rows: Rows) -> Float[Array, "B S *K"]:
    """Rows of an array, zero beyond the last."""
    return jnp.take(stored, rows, axis=0, mode="fill", fill_value=0)
