"""What all reductions share: checks of rank and spectrum, exact small algebra on the host."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_core.data.trees import get_size
from jax_core.operators import LowRank

_SLICE = 1 << 16


def check_rank(rank: int, size: int) -> None:
    """Refuse a rank that the matrix cannot have.

    Raises:
        ValueError: Unless ``1 <= rank <= size``.
    """
    if not 1 <= rank <= size:
        raise ValueError(f"rank={rank} for a curvature of {size} parameters. Choose a rank from 1 to {size}.")


def flat_size(layout: Any) -> int:
    """The dimension that a layout (an int or a pytree) stands for."""
    return layout if isinstance(layout, int) else get_size(layout)


def check_finite(values: np.ndarray, what: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        FloatingPointError: Naming ``what``.
    """
    if not np.isfinite(values).all():
        raise FloatingPointError(
            f"{what} of the curvature is not finite. Look for NaN or infinite weights, inputs or outputs, or an "
            "overflow of the model's float type."
        )


def clip_spectrum(values: np.ndarray, size: int, dtype: Any) -> np.ndarray:
    """Set negative eigenvalues within round-off to zero.

    Raises:
        ValueError: If one is more negative than rounding explains.
    """
    largest = float(np.abs(values).max(initial=0.0))
    roundoff = 10 * float(jnp.finfo(dtype).eps) * np.sqrt(size) * largest
    if values.min(initial=0.0) < -roundoff:
        raise ValueError(
            f"The curvature has an eigenvalue of {values.min():.3g} beside a largest of {largest:.3g}, where rounding "
            f"explains {-roundoff:.1g}. It is indefinite, no precision matrix: use the GGN or a Fisher in its place."
        )
    return np.maximum(values, 0.0)


def cross_gram(left: Float[Array, "K P"], right: Float[Array, "M P"]) -> np.ndarray:
    """``left right^T`` summed in float64 on the host, slice by slice: squared conditions need the digits."""
    a, b = np.asarray(left), np.asarray(right)
    total = np.zeros((a.shape[0], b.shape[0]))
    for start in range(0, a.shape[1], _SLICE):
        part = slice(start, start + _SLICE)
        total += a[:, part].astype(np.float64) @ b[:, part].T.astype(np.float64)
    return total


@jax.jit
def combine(coefficients: Float[Array, "R K"], rows: Float[Array, "K P"]) -> Float[Array, "R P"]:
    """Linear combinations of rows."""
    return coefficients.astype(rows.dtype) @ rows


def orthonormal_rows(rows: Float[Array, "K P"]) -> Float[Array, "K P"]:
    """An orthonormal basis of nearly orthogonal rows, by one Cholesky step with a float64 Gram matrix."""
    factor = np.linalg.cholesky(cross_gram(rows, rows))
    return combine(jnp.asarray(np.linalg.inv(factor)), rows)


def low_rank(rows: Float[Array, "R P"], values: np.ndarray) -> LowRank:
    """Eigenpairs, largest first, as an operator with ``alpha = 0``."""
    order = np.argsort(values)[::-1]
    return LowRank(_columns(rows, order), jnp.asarray(values[order], rows.dtype), jnp.zeros((), rows.dtype))


@jax.jit
def _columns(rows: Float[Array, "R P"], order: Any) -> Float[Array, "P R"]:
    return rows[order].T
