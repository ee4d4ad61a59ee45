"""Two-sided scaling by a diagonal: the curvature in the coordinates in which the prior is the identity."""

from __future__ import annotations

from functools import singledispatch

import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_core.operators.block_diagonal import Block, BlockDiagonal
from jax_core.operators.block_low_rank import BlockLowRank
from jax_core.operators.dense import Dense
from jax_core.operators.diagonal import Diagonal
from jax_core.operators.kronecker import Kronecker
from jax_core.operators.low_rank import LowRank
from jax_core.operators.protocol import Operator
from jax_core.operators.row_blocks import RowBlocks
from jax_core.operators.symmetric import Symmetric
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
def _(operator: Symmetric, root: Array) -> Symmetric:
    return Symmetric.from_matrix(operator.matrix() * root[:, None] * root[None, :])


@_scale_both_sides.register
def _(operator: LowRank, root: Array) -> LowRank:
    # The scaled columns are no longer orthogonal: diagonalise their small Gram matrix. Exact for alpha = 0.
    columns = root[:, None] * operator.U * jnp.sqrt(operator.s)
    values, rotation = jnp.linalg.eigh(columns.T @ columns)
    keep = values > 10 * jnp.finfo(values.dtype).eps * values[-1:]
    basis = columns @ (rotation * jnp.where(keep, 1 / jnp.sqrt(jnp.where(keep, values, 1.0)), 0.0))
    return LowRank(basis, jnp.where(keep, values, 0.0), operator.alpha)


@_scale_both_sides.register
def _(operator: Kronecker, root: Array) -> Kronecker:
    return operator.rescale(constant(root) ** 2)


@_scale_both_sides.register
def _(operator: RowBlocks, root: Array) -> RowBlocks:
    return operator.rescale(constant(root) ** 2)


@_scale_both_sides.register
def _(operator: BlockDiagonal, root: Array) -> BlockDiagonal:
    pairs = zip(operator.parts, operator.slices, strict=True)
    return BlockDiagonal(tuple(_scale_block(part, root[s]) for part, s in pairs))


def _scale_block(part: Block, root: Array) -> Block:
    scaled = _scale_both_sides(part, root)
    assert isinstance(scaled, Kronecker | Dense | RowBlocks | Diagonal)  # a block stays of its kind
    return scaled


@_scale_both_sides.register
def _(operator: BlockLowRank, root: Array) -> BlockLowRank:
    # A factor of a whole block commutes with its eigenvectors.
    blocks, rows = [], []
    for part, s in zip(operator.blocks.parts, operator.blocks.slices, strict=True):
        scale = root[s] if isinstance(part, Diagonal) else constant(root[s])
        blocks.append(_scale_block(part, scale) if isinstance(part, Diagonal) else part.rescale(scale**2))
        rows.append(operator.U[s] * jnp.broadcast_to(scale, (part.size,))[:, None])
    return BlockLowRank(BlockDiagonal(tuple(blocks)), jnp.concatenate(rows), operator.s)


def constant(root: Float[Array, " N"]) -> Float[Array, ""]:
    """The one number of a block, which commutes with the block's eigenvectors.

    Raises:
        ValueError: If there are several, as far as they are known.
    """
    if not isinstance(root, jax.core.Tracer) and np.ptp(np.asarray(root)) > 0:
        raise ValueError(
            "The prior of a Kronecker product, and of blocks of a parameter's rows, is one number for the whole "
            "parameter: give one precision, or one per layer. "
            "Precisions of single parameters go with the structures 'full', 'diag' and 'lowrank'."
        )
    return root[0]
