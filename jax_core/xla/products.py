"""Products of matrices, spelled for the backend."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_core.xla.backend import platform

_FEW, _SOME = 32, 64  # rows
_MANY, _LONG = 2**20, 256  # numbers of a matrix, and of its rows, below which no copy of it is worth a thought


def times_rows(rows: Float[Array, "N I"], others: Float[Array, "M I"]) -> Float[Array, "N M"]:
    """``rows @ others^T``, for many others.

    For up to 64 rows XLA's CPU backend copies the larger matrix into another order first, which took 45 ms of 47 for 16
    rows of 512 numbers and 51,300 others. The product from the other side is not copied (9 ms), and its result turned;
    of more than 32 rows that costs more than to fill them up to where nothing is copied (32 ms, not 61, of 64).
    """
    count = rows.shape[0]
    if platform() != "cpu" or not 1 < count <= _SOME or others.size < _MANY or others.shape[1] < _LONG:
        return rows @ others.T
    if count <= _FEW:
        # without the barrier XLA writes it as the product that it was
        return jax.lax.optimization_barrier(others @ rows.T).T
    return (jnp.pad(rows, ((0, _SOME + 8 - count), (0, 0))) @ others.T)[:count]
