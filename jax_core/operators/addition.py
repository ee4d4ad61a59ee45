"""Sums of two operators of one structure, in that structure: what a curvature and that of more data make together."""

from __future__ import annotations

from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
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

Self = TypeVar("Self", bound=Operator)

_PRODUCT = 1e-4  # of a Kronecker product's eigenvalues, what may be no product


def add(first: Operator, second: Operator, *, rank: int | None = None) -> Operator:
    r"""$A + B$ in the structure of both: exact of matrices, their blocks and diagonals.

    Two low ranks are truncated to ``rank``, by default the larger of theirs: what $\operatorname{tr}(A + B)$ loses is
    the trace of what is left out. Kronecker products $B_1 \otimes A_1 + B_2 \otimes A_2$ become one whose factors are
    sums of theirs, each weighed by the other side's trace, which is what one pass over all data gives where the inputs
    of both parts have the same mean square. Other eigenvalues in Kronecker coordinates are the exact diagonals of both
    in those of the factors' sums.

    Raises:
        TypeError: For two structures that differ.
    """
    match first, second:
        case Symmetric(), Symmetric():
            return Symmetric.from_matrix(first.matrix() + second.matrix())
        case Dense(), Dense():
            return Dense.from_matrix(first.matrix() + second.matrix())
        case Diagonal(), Diagonal():
            return Diagonal(first.diagonal + second.diagonal)
        case LowRank(), LowRank():
            return _low_rank(first, second, rank=rank or max(first.rank, second.rank))
        case BlockDiagonal(), BlockDiagonal():
            return BlockDiagonal(tuple(map(_block, first.parts, second.parts)))
        case BlockLowRank(), BlockLowRank():
            return _block_low_rank(first, second, rank=rank or max(first.rank, second.rank))
    raise TypeError(
        f"Curvatures of {type(first).__name__} and {type(second).__name__} have no sum. Fit both in one structure."
    )


@partial(jax.jit, static_argnames="rank")
@full_precision
def _low_rank(first: LowRank, second: LowRank, *, rank: int) -> LowRank:
    columns = jnp.concatenate([first.U * jnp.sqrt(first.s), second.U * jnp.sqrt(second.s)], axis=1)
    vectors, values, _ = _leading(columns, rank)
    return LowRank(vectors, values, first.alpha + second.alpha)


def _leading(columns: Float[Array, "P K"], rank: int) -> tuple[Array, Array, Array]:
    """The leading eigenpairs of ``C C^T``, and those of its columns that are left, ``C V_rest``."""
    rank = min(rank, *columns.shape)
    _, scales, right = jnp.linalg.svd(jnp.linalg.qr(columns, mode="r"))
    kept = jnp.where(scales[:rank] > 0, scales[:rank], 1.0)
    return (columns @ right[:rank].T) / kept, jnp.square(scales[:rank]), columns @ right[rank:].T


def _block(first: Block, second: Block) -> Block:
    match first, second:
        case Kronecker(), Kronecker():
            return _kronecker(first, second)
        case (Dense(), Dense()) | (Diagonal(), Diagonal()):
            found = add(first, second)
            assert isinstance(found, Dense | Diagonal)
            return found
        case RowBlocks(), RowBlocks() if (first.size, first.across) == (second.size, second.across):
            return _row_blocks(first, second)
    raise TypeError("The curvatures have other blocks: they belong to different networks. Fit anew on all the data.")


@jax.jit
@full_precision
def _row_blocks(first: RowBlocks, second: RowBlocks) -> RowBlocks:
    return RowBlocks.from_matrices(first.matrices() + second.matrices(), across=first.across)


@jax.jit
@full_precision
def _kronecker(first: Kronecker, second: Kronecker) -> Kronecker:
    (b, left), (a, right) = (_summed_factor(first, second, side) for side in (0, 1))
    product = jnp.outer(b, a) / jnp.maximum(b.sum(), jnp.finfo(b.dtype).tiny)
    diagonal = _diagonal_in(first, left, right) + _diagonal_in(second, left, right)
    return Kronecker(left, right, jnp.where(_is_product(first) & _is_product(second), product, diagonal))


def _summed_factor(first: Kronecker, second: Kronecker, side: int) -> tuple[Array, Array | None]:
    """Eigenpairs of both partial traces' sum; that of two diagonal ones is diagonal."""

    def sums(operator: Kronecker) -> Array:
        return operator.eigenvalues.sum(0 if side else 1)

    def partial_trace(operator: Kronecker) -> Array:
        basis = operator.right if side else operator.left
        return jnp.diag(sums(operator)) if basis is None else (basis * sums(operator)) @ basis.T

    if all((operator.right if side else operator.left) is None for operator in (first, second)):
        return sums(first) + sums(second), None
    values, vectors = jnp.linalg.eigh(partial_trace(first) + partial_trace(second))
    return jnp.maximum(values, 0.0), vectors


def _diagonal_in(operator: Kronecker, left: Array | None, right: Array | None) -> Array:
    """The diagonal in the coordinates of two other bases."""
    rows, columns = _overlaps(left, operator.left), _overlaps(right, operator.right)
    inner = operator.eigenvalues if rows is None else rows @ operator.eigenvalues
    return inner if columns is None else inner @ columns.T


def _overlaps(basis: Array | None, own: Array | None) -> Array | None:
    """Squared products of two bases' vectors, ``None`` where both are the identity."""
    if basis is None:
        return None if own is None else jnp.square(own)
    return jnp.square(basis.T if own is None else basis.T @ own)


def _is_product(operator: Kronecker) -> Array:
    w = operator.eigenvalues
    outer = jnp.outer(w.sum(1), w.sum(0)) / jnp.maximum(w.sum(), jnp.finfo(w.dtype).tiny)
    return jnp.linalg.norm(w - outer) <= _PRODUCT * jnp.linalg.norm(w)


@partial(jax.jit, static_argnames="rank")
@full_precision
def _block_low_rank(first: BlockLowRank, second: BlockLowRank, *, rank: int) -> BlockLowRank:
    basis = BlockDiagonal(tuple(map(_basis, first.parts, second.parts)))

    def turned(operator: BlockLowRank) -> Array:
        rows = basis.rotate(operator.blocks.rotate_back(operator.U.T))
        return rows.T * jnp.sqrt(operator.s)

    vectors, values, rest = _leading(jnp.concatenate([turned(first), turned(second)], axis=1), rank)
    diagonal = jnp.concatenate(
        [_entries_in(a, q) + _entries_in(b, q) for a, b, q in zip(first.parts, second.parts, basis.parts, strict=True)]
    )
    return BlockLowRank(basis.with_spectrum(diagonal + jnp.square(rest).sum(1)), vectors, values)


def _basis(first: Block, second: Block) -> Block:
    if isinstance(first, Kronecker) and isinstance(second, Kronecker):
        (_, left), (_, right) = (_summed_factor(first, second, side) for side in (0, 1))
        return Kronecker(left, right, jnp.zeros_like(first.eigenvalues))
    return _block(first, second)


def _entries_in(operator: Block, basis: Block) -> Array:
    """The diagonal in the coordinates of another basis."""
    if isinstance(operator, Kronecker) and isinstance(basis, Kronecker):
        return _diagonal_in(operator, basis.left, basis.right).reshape(-1)
    if isinstance(operator, Diagonal):
        return operator.diagonal
    if isinstance(operator, RowBlocks) and isinstance(basis, RowBlocks):
        overlaps = jnp.swapaxes(basis.eigenvectors, 1, 2) @ operator.eigenvectors
        return (jnp.square(overlaps) @ operator.eigenvalues[..., None]).reshape(-1)
    unit = jnp.eye(operator.size, dtype=operator.spectrum.dtype)
    return jnp.diagonal(basis.rotate(jax.vmap(operator.mv)(basis.rotate_back(unit))))
