"""Two-sided scaling by a diagonal: the curvature in the coordinates in which the prior is the identity."""

from __future__ import annotations

from functools import singledispatch

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_core.operators.dense import Dense
from jax_core.operators.diagonal import Diagonal
from jax_core.operators.low_rank import LowRank
from jax_core.operators.protocol import Operator
from jax_core.xla.precision import full_precision


@full_precision
def whiten(operator: Operator, root: Float[Array, " *P"]) -> Operator:
    r"""$\operatorname{diag}(r)\, A \operatorname{diag}(r)$, for a scalar or a vector $r$."""
    return operator.rescale(root**2) if jnp.ndim(root) == 0 else _scale_both_sides(operator, root)


@singledispatch
def _scale_both_sides(operator: Operator, root: Array) -> Operator:
    raise TypeError(
        f"A prior that differs between parameters needs to know how to scale {type(operator).__name__} on both sides. "
        "Use a scalar prior precision."
    )


@_scale_both_sides.register
def _(operator: Diagonal, root: Array) -> Diagonal:
    return Diagonal(operator.diagonal * root**2)


@_scale_both_sides.register
def _(operator: Dense, root: Array) -> Dense:
    return Dense.from_matrix(operator.matrix() * root[:, None] * root[None, :])


@_scale_both_sides.register
def _(operator: LowRank, root: Array) -> LowRank:
    # The scaled columns are no longer orthogonal: diagonalise their small Gram matrix. Exact for alpha = 0.
    columns = root[:, None] * operator.U * jnp.sqrt(operator.s)
    values, rotation = jnp.linalg.eigh(columns.T @ columns)
    keep = values > 10 * jnp.finfo(values.dtype).eps * values[-1:]
    basis = columns @ (rotation * jnp.where(keep, 1 / jnp.sqrt(jnp.where(keep, values, 1.0)), 0.0))
    return LowRank(basis, jnp.where(keep, values, 0.0), operator.alpha)
