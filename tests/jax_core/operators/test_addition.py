"""Sums of operators of one structure, against sums of dense matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_core.operators import (
    BlockDiagonal,
    BlockLowRank,
    Dense,
    Diagonal,
    Kronecker,
    LowRank,
    RowBlocks,
    Symmetric,
    add,
)

pytestmark = pytest.mark.in_turns


def matrix(operator):
    return jax.vmap(operator.mv)(jnp.eye(operator.size))


def positive(key, size, rank=None):
    root = jax.random.normal(jax.random.key(key), (size, size if rank is None else rank))
    return root @ root.T


def low_rank(key, size, rank, alpha=0.0):
    values, vectors = jnp.linalg.eigh(positive(key, size, rank))
    return LowRank(vectors[:, ::-1][:, :rank], values[::-1][:rank], jnp.asarray(alpha))


def factors(key, m=3, n=2):
    """A Kronecker product by its two matrices, and it."""
    left, right = positive(key, m), positive(key + 1, n)
    (b, u), (a, v) = jnp.linalg.eigh(left), jnp.linalg.eigh(right)
    return (left, right), Kronecker(u, v, jnp.outer(b, a))


def eigenvalue_corrected(key, m=3, n=2):
    _, product = factors(key, m, n)
    return Kronecker(product.left, product.right, jax.random.uniform(jax.random.key(key + 9), (m, n)) + 0.1)


def blocks(key, corrected=False):
    first = eigenvalue_corrected(key) if corrected else factors(key)[1]
    small = Dense.from_matrix(positive(key + 2, 3))
    return BlockDiagonal((first, small, Diagonal(jnp.arange(1.0, 3.0) + key), by_rows(key), by_rows(key, across=True)))


def by_rows(key, *, across=False):
    matrices = jnp.stack([positive(key + i, 3) for i in (11, 12)])
    return RowBlocks.from_matrices(matrices, across=across)


def block_low_rank(key, rank=3):
    base = blocks(key, corrected=True)
    columns = jnp.linalg.qr(jax.random.normal(jax.random.key(key + 5), (base.size, rank)))[0]
    return BlockLowRank(base, columns, jnp.arange(float(rank), 0.0, -1.0))


@pytest.mark.parametrize("kind", [Symmetric, Dense])
@given(size=st.integers(1, 7), keys=st.tuples(st.integers(0, 50), st.integers(0, 50)))
def test_matrices_add_exactly(kind, size, keys):
    with jax.enable_x64(True):
        first, second = (positive(k, size, 2) for k in keys)
        found = add(kind.from_matrix(first), kind.from_matrix(second))
        assert isinstance(found, kind)
        np.testing.assert_allclose(matrix(found), first + second, atol=1e-10)


def test_scaled_matrices_and_diagonals_add_exactly(x64):
    first, second = positive(0, 5), positive(1, 5)
    found = add(Symmetric.from_matrix(first).rescale(3.0), Symmetric.from_matrix(second).rescale(0.5))
    np.testing.assert_allclose(matrix(found), 3 * first + second / 2, atol=1e-10)
    summed = add(Diagonal(jnp.arange(3.0)), Diagonal(jnp.ones(3)))
    np.testing.assert_array_equal(summed.diagonal, [1.0, 2.0, 3.0])


@given(size=st.integers(2, 9), ranks=st.tuples(st.integers(1, 6), st.integers(1, 6)), key=st.integers(0, 20))
def test_low_ranks_add_to_the_best_approximation_of_their_larger_rank(size, ranks, key):
    with jax.enable_x64(True):
        first, second = (low_rank(key + i, size, min(r, size), 0.1 * i) for i, r in enumerate(ranks))
        found, rank = add(first, second), max(first.rank, second.rank)
        assert found.rank == rank and float(found.alpha) == pytest.approx(0.1)
        np.testing.assert_allclose(found.U.T @ found.U, np.eye(rank), atol=1e-8)
        whole = (first.U * first.s) @ first.U.T + (second.U * second.s) @ second.U.T
        values, vectors = np.linalg.eigh(whole)
        best = (vectors[:, -rank:] * values[-rank:]) @ vectors[:, -rank:].T
        np.testing.assert_allclose((found.U * found.s) @ found.U.T, best, atol=1e-7)
        left_out = np.trace(whole) - float(found.s.sum())
        np.testing.assert_allclose(left_out, values[: size - rank].sum(), atol=1e-7)


def test_a_rank_that_is_asked_for_keeps_both_sums_whole(x64):
    first, second = low_rank(0, 9, 3), low_rank(1, 9, 4)
    np.testing.assert_allclose(matrix(add(first, second, rank=50)), matrix(first) + matrix(second), atol=1e-9)
    assert add(first, second, rank=50).rank == 7 and add(first, second, rank=2).rank == 2
    assert add(block_low_rank(0), block_low_rank(4), rank=5).rank == 5


def test_low_ranks_add_exactly_where_their_span_allows(x64):
    first = low_rank(0, 6, 3)
    second = LowRank(first.U, first.s[::-1], jnp.zeros(()))
    np.testing.assert_allclose(matrix(add(first, second)), matrix(first) + matrix(second), atol=1e-10)
    nothing = LowRank(first.U, jnp.zeros(3), jnp.zeros(()))
    np.testing.assert_allclose(matrix(add(nothing, first)), matrix(first), atol=1e-10)
    assert np.isfinite(matrix(add(nothing, nothing))).all()


def test_kronecker_products_that_share_a_side_add_exactly(x64):
    (left, right), first = factors(0)
    (other, _), _ = factors(7)
    (b, u), (a, v) = jnp.linalg.eigh(other), jnp.linalg.eigh(3 * right)
    second = Kronecker(u, v, jnp.outer(b, a))
    found = add(BlockDiagonal((first,)), BlockDiagonal((second,)))
    np.testing.assert_allclose(matrix(found), jnp.kron(left + 3 * other, right), atol=1e-9)


@given(key=st.integers(0, 30))
def test_sums_of_kronecker_products_are_products_with_both_partial_traces(key):
    with jax.enable_x64(True):
        first, second = blocks(key), blocks(key + 3)
        found = add(first, second)
        wanted = np.asarray(matrix(first) + matrix(second))
        np.testing.assert_allclose(matrix(found)[6:, 6:], wanted[6:, 6:], atol=1e-9)
        np.testing.assert_allclose(found.trace(), np.trace(wanted), rtol=1e-10)
        kept, summed = (np.asarray(m)[:6, :6].reshape(3, 2, 3, 2) for m in (matrix(found), wanted))
        for axes in ((0, 2), (1, 3)):
            np.testing.assert_allclose(kept.trace(0, *axes), summed.trace(0, *axes), atol=1e-9)
        assert np.linalg.matrix_rank(found.parts[0].eigenvalues, tol=1e-8) == 1


@given(key=st.integers(0, 30))
def test_corrected_eigenvalues_are_the_exact_diagonal_in_the_summed_basis(key):
    with jax.enable_x64(True):
        first, second = BlockDiagonal((eigenvalue_corrected(key),)), BlockDiagonal((eigenvalue_corrected(key + 3),))
        found = add(first, second).parts[0]
        basis = jnp.kron(found.left, found.right)
        wanted = jnp.diagonal(basis.T @ (matrix(first) + matrix(second)) @ basis)
        np.testing.assert_allclose(found.eigenvalues.reshape(-1), wanted, atol=1e-10)


@given(key=st.integers(0, 30))
def test_a_low_rank_beside_blocks_keeps_the_leading_part_and_the_exact_diagonal_of_the_rest(key):
    with jax.enable_x64(True):
        first, second = block_low_rank(key), block_low_rank(key + 40)
        found = add(first, second)
        wanted = np.asarray(matrix(first) + matrix(second))
        assert isinstance(found, BlockLowRank) and found.rank == 3
        turn = np.asarray(jax.vmap(found.blocks.rotate_back)(jnp.eye(found.size))).T
        np.testing.assert_allclose(turn @ turn.T, np.eye(found.size), atol=1e-10)
        np.testing.assert_allclose(
            np.diagonal(turn.T @ np.asarray(matrix(found)) @ turn), np.diagonal(turn.T @ wanted @ turn), atol=1e-9
        )
        columns = [
            np.asarray(jax.vmap(o.blocks.rotate_back)(o.U.T)).T * np.sqrt(np.asarray(o.s)) for o in (first, second)
        ]
        both = np.concatenate(columns, 1)
        np.testing.assert_allclose(found.s, np.linalg.eigvalsh(both @ both.T)[::-1][:3], atol=1e-9)


KINDS = {
    "symmetric": lambda k: Symmetric.from_matrix(positive(k, 5)),
    "diagonal": lambda k: Diagonal(jnp.arange(1.0, 6.0) + k),
    "low_rank": lambda k: low_rank(k, 8, 3),
    "blocks": blocks,
    "corrected": lambda k: blocks(k, corrected=True),
    "block_low_rank": block_low_rank,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_sum_does_not_depend_on_the_order(x64, kind):
    first, second = KINDS[kind](0), KINDS[kind](4)
    np.testing.assert_allclose(matrix(add(first, second)), matrix(add(second, first)), atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sum_with_itself_is_twice_itself(x64, kind):
    operator = KINDS[kind](0)
    if kind == "block_low_rank":  # whose parts are truncated and summed each by itself
        np.testing.assert_allclose(add(operator, operator).trace(), 2 * operator.trace())
    else:
        np.testing.assert_allclose(matrix(add(operator, operator)), 2 * matrix(operator), atol=1e-8)


def test_other_structures_have_no_sum():
    with pytest.raises(TypeError, match="Diagonal and Symmetric have no sum"):
        add(Diagonal(jnp.ones(2)), Symmetric.from_matrix(jnp.eye(2)))
    with pytest.raises(TypeError, match="other blocks"):
        add(BlockDiagonal((Diagonal(jnp.ones(2)),)), BlockDiagonal((Dense.from_matrix(jnp.eye(2)),)))
    with pytest.raises(TypeError, match="other blocks"):
        add(BlockDiagonal((by_rows(0),)), BlockDiagonal((by_rows(0, across=True),)))
