"""Exact eigenpairs from the Gram matrix of the rows, where samples times outputs are few."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float

from jax_core.lowrank.spectrum import check_finite, combine, cross_gram, low_rank, orthonormal_rows
from jax_core.operators import LowRank
from jax_core.xla.precision import full_precision


@full_precision
def gram(rows: Float[Array, "N P"], *, rank: int | None = None) -> LowRank:
    r"""Eigenpairs of $R^\top R$ from those of the small matrix $R R^\top$, exact up to rounding.

    Args:
        rows: $R$, one row per sample and output.
        rank: Largest eigenpairs kept; all that are not zero by default.

    Raises:
        FloatingPointError: If a row is not finite.
    """
    if len(rows) == 0:  # the loss has no curvature at any output
        return _of_nothing(rows)
    inner = cross_gram(rows, rows)
    check_finite(inner, "The Gram matrix")
    size = len(inner)
    leading = None if rank is None or rank >= size else (size - rank, size - 1)
    values, vectors = scipy.linalg.eigh(inner, subset_by_index=leading)
    values, vectors = values[::-1], vectors[:, ::-1]
    zero = 10 * float(jnp.finfo(rows.dtype).eps) * values.max(initial=0.0)
    count = int((values > zero).sum())
    count = count if rank is None else min(count, rank)
    values, vectors = values[:count], vectors[:, :count]
    if count == 0:
        return _of_nothing(rows)
    basis = combine(jnp.asarray((vectors / np.sqrt(values)).T), rows)
    return low_rank(orthonormal_rows(basis), values)


def _of_nothing(rows: Array) -> LowRank:
    """Zero, as one pair of eigenvalue zero: shapes without elements have no products."""
    return low_rank(jnp.eye(1, rows.shape[1], dtype=rows.dtype), np.zeros(1))
