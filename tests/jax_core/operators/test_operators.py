"""Laws that every operator obeys, against dense matrices."""

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
    Operator,
    RowBlocks,
    Symmetric,
    logdet,
    whiten,
)
from jax_core.operators.projection import combine

pytestmark = pytest.mark.in_turns


def make(kind: str, size: int = 7, rank: int = 3) -> tuple[Operator, jax.Array]:
    """An operator and its dense matrix."""
    key = jax.random.key(size * 10 + rank)
    if kind == "diagonal":
        d = jax.random.uniform(key, (size,)) + 0.1
        return Diagonal(d), jnp.diag(d)
    if kind == "dense":
        root = jax.random.normal(key, (size, size))
        return Dense.from_matrix(root @ root.T), root @ root.T
    if kind == "symmetric":
        root = jax.random.normal(key, (size, size))
        return Symmetric.from_matrix(root @ root.T / 2).rescale(2.0), root @ root.T
    if kind == "kronecker":
        return kronecker(key, size, rank)
    if kind in ("row_blocks", "column_blocks"):
        return row_blocks(key, size, rank, across=kind == "column_blocks")
    if kind == "blocks":
        return blocks(key, size, rank)
    if kind == "block_low_rank":
        base, matrix = blocks(key, size, rank)
        columns = jax.random.normal(jax.random.key(5), (base.size, rank))
        s = jnp.arange(1.0, rank + 1)
        turned = jax.vmap(base.rotate_back, 1, 1)(columns)
        return BlockLowRank(base, columns, s), matrix + (turned * s) @ turned.T
    u = jnp.linalg.qr(jax.random.normal(key, (size, rank)))[0]
    s = jnp.arange(1.0, rank + 1)
    alpha = jnp.asarray(0.5)
    return LowRank(u, s, alpha), (u * s) @ u.T + alpha * jnp.eye(size)


def kronecker(key: jax.Array, size: int, other: int) -> tuple[Kronecker, jax.Array]:
    """With a side of ``size`` / ``other`` where that is whole, else of one."""
    other = other if size % other == 0 else 1
    keys = jax.random.split(key, 3)
    left = jnp.linalg.qr(jax.random.normal(keys[0], (size // other, size // other)))[0]
    right = jnp.linalg.qr(jax.random.normal(keys[1], (other, other)))[0]
    values = jax.random.uniform(keys[2], (size // other, other)) + 0.1
    basis = jnp.kron(left, right)
    return Kronecker(left, right, values), (basis * values.reshape(-1)) @ basis.T


def row_blocks(key: jax.Array, size: int, width: int, *, across: bool) -> tuple[RowBlocks, jax.Array]:
    """Blocks of ``width`` where that divides the size, else of one; ``across``, of a matrix's columns."""
    width = width if size % width == 0 else 1
    roots = jax.random.normal(key, (size // width, width, width))
    matrices = roots @ jnp.swapaxes(roots, 1, 2)
    whole = jax.scipy.linalg.block_diag(*matrices)
    places = np.arange(size).reshape(-1, width).T.reshape(-1) if across else np.arange(size)
    return RowBlocks.from_matrices(matrices, across=across), whole[places][:, places]


def blocks(key: jax.Array, size: int, rank: int) -> tuple[BlockDiagonal, jax.Array]:
    """A Kronecker product, a diagonal, blocks of a matrix's columns and a dense block, as far as the size goes."""
    first = (size + 1) // 2
    parts = [kronecker(key, first, rank)]
    if size > first:
        parts.append(make("diagonal", 1))
    if size > first + 3:
        parts.append(row_blocks(key, 2, 2, across=True))
    if (rest := size - sum(part.size for part, _ in parts)) > 0:
        parts.append(make("dense", rest))
    return BlockDiagonal(tuple(part for part, _ in parts)), jax.scipy.linalg.block_diag(*(m for _, m in parts))


def within_blocks(operator: Operator) -> np.ndarray:
    """An order that the operator can take: any, but blocks keep theirs, and a Kronecker product's sides."""
    base = operator.blocks if isinstance(operator, BlockLowRank) else operator
    if isinstance(base, Kronecker):
        m, n = base.eigenvalues.shape
        return np.roll(np.arange(m * n).reshape(m, n), (1, 1), (0, 1)).T.reshape(-1)
    if isinstance(base, RowBlocks):
        g, n = base.eigenvalues.shape
        places = np.arange(g * n).reshape((n, g) if base.across else (g, n))
        return np.roll(places, (1, 1), (0, 1)).T.reshape(-1)
    if isinstance(base, BlockDiagonal):
        return np.concatenate([s.start + within_blocks(p) for p, s in zip(base.parts, base.slices, strict=True)])
    return np.roll(np.arange(operator.size), 1)


BY_ROWS = ("row_blocks", "column_blocks")
SPECTRAL = ("diagonal", "dense", "symmetric", "low_rank", "kronecker", *BY_ROWS, "blocks")
KINDS = (*SPECTRAL, "block_low_rank")
WHOLE = ("kronecker", *BY_ROWS, "blocks", "block_low_rank")  # with one prior for each block


@pytest.mark.parametrize("kind", KINDS)
def test_operator_speaks_the_protocol(kind):
    assert isinstance(make(kind)[0], Operator)


@pytest.mark.parametrize("kind", KINDS)
@given(size=st.integers(1, 9), rank=st.integers(1, 4))
def test_every_verb_equals_the_dense_one(kind, size, rank):
    with jax.enable_x64(True):
        operator, matrix = make(kind, size, min(rank, size))
        v = jax.random.normal(jax.random.key(1), (size,))
        rows = jax.random.normal(jax.random.key(2), (2, 3, size))
        np.testing.assert_allclose(operator.mv(v), matrix @ v, atol=1e-11)
        np.testing.assert_allclose(operator.trace(), jnp.trace(matrix), rtol=1e-11)
        np.testing.assert_allclose(operator.quadratic(rows), rows @ matrix @ jnp.swapaxes(rows, 1, 2), atol=1e-10)
        np.testing.assert_allclose(operator.shift(2.0).mv(v), matrix @ v + 2 * v, atol=1e-11)
        turned = within_blocks(operator)
        np.testing.assert_allclose(operator.permute(turned).mv(v), matrix[turned][:, turned] @ v, atol=1e-11)
        np.testing.assert_allclose(operator.rescale(3.0).mv(v), 3 * matrix @ v, atol=1e-11)
        assert operator.size == size
        found = operator.projection()
        basis = jnp.eye(size) if found.basis is None else found.basis.rotate(jnp.eye(size))
        inner = None if found.columns is None else rows @ basis @ found.columns
        gram = None if found.weights is None else (rows @ basis * found.weights) @ jnp.swapaxes(rows @ basis, 1, 2)
        np.testing.assert_allclose(combine(found.values, inner, gram), operator.quadratic(rows), atol=1e-10)
        moved = found.permute(turned)
        basis = jnp.eye(size) if moved.basis is None else moved.basis.rotate(jnp.eye(size))
        weights = 0.0 if moved.weights is None else moved.weights
        rebuilt = (basis * weights) @ basis.T
        if moved.columns is not None:
            rebuilt += (basis @ moved.columns * moved.values) @ (basis @ moved.columns).T
        np.testing.assert_allclose(rebuilt, matrix[turned][:, turned], atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_inverse_undoes_mv(x64, kind):
    operator, _ = make(kind)
    v = jax.random.normal(jax.random.key(1), (7,))
    shifted = operator.shift(1.0)
    np.testing.assert_allclose(shifted.inverse().mv(shifted.mv(v)), v, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_inverse_root_times_its_transpose_is_the_inverse(x64, kind):
    operator, matrix = make(kind)
    root = jax.vmap(operator.shift(1.0).inverse_root_mv, 1, 1)(jnp.eye(7))
    np.testing.assert_allclose(root @ root.T @ (matrix + jnp.eye(7)), jnp.eye(7), atol=1e-11)


@pytest.mark.parametrize("kind", SPECTRAL)
def test_root_twice_is_the_operator(x64, kind):
    operator, matrix = make(kind)
    v = jax.random.normal(jax.random.key(1), (7,))
    root = operator.shift(1.0).apply(jnp.sqrt)
    np.testing.assert_allclose(root.mv(root.mv(v)), matrix @ v + v, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_logdet_is_the_dense_one(x64, kind):
    operator, matrix = make(kind)
    expected = np.linalg.slogdet(np.asarray(matrix + jnp.eye(7)))[1]
    np.testing.assert_allclose(logdet(operator.shift(1.0)), expected, rtol=1e-11)
    np.testing.assert_allclose(operator.log1p_det(), expected, rtol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_whitening_scales_both_sides(x64, kind):
    operator, matrix = make(kind)
    if isinstance(operator, LowRank):
        operator, matrix = LowRank(operator.U, operator.s, jnp.zeros(())), matrix - 0.5 * jnp.eye(7)
    root = jax.random.uniform(jax.random.key(3), (7,)) + 0.2
    if kind in WHOLE:
        root = one_number_a_block(operator, root)
    v = jax.random.normal(jax.random.key(1), (7,))
    np.testing.assert_allclose(whiten(operator, root).mv(v), root * (matrix @ (root * v)), atol=1e-11)
    np.testing.assert_allclose(whiten(operator, jnp.asarray(0.3)).mv(v), 0.09 * matrix @ v, atol=1e-11)


def one_number_a_block(operator, root):
    base = operator.blocks if isinstance(operator, BlockLowRank) else operator
    slices = base.slices if isinstance(base, BlockDiagonal) else (slice(0, base.size),)
    return jnp.concatenate([jnp.full(root[s].shape, root[s.start]) for s in slices])


@pytest.mark.parametrize("kind", WHOLE)
def test_blocks_whose_eigenvectors_stay_take_no_prior_of_single_parameters(kind):
    operator, _ = make(kind, 8, 2)
    with pytest.raises(ValueError, match="one per layer"):
        whiten(operator, jnp.arange(1.0, 9.0))


def test_an_order_that_leads_out_of_a_block_or_mixes_sides_is_refused():
    operator, _ = make("blocks")
    with pytest.raises(ValueError, match="within its blocks"):
        operator.permute(np.roll(np.arange(7), 1))
    product = Kronecker(jnp.eye(2), jnp.eye(2), jnp.ones((2, 2)))
    with pytest.raises(ValueError, match="no Kronecker product"):
        product.permute(np.array([0, 1, 3, 2]))
    for kind in BY_ROWS:
        with pytest.raises(ValueError, match="neither its rows nor its columns"):
            make(kind, 6, 3)[0].permute(np.array([3, 1, 2, 0, 4, 5]))


def test_rows_moved_within_themselves_stay_rows(x64):
    operator, matrix = make("row_blocks", 6, 3)
    turned = np.array([4, 5, 3, 0, 2, 1])
    moved = operator.permute(turned)
    assert not moved.across
    np.testing.assert_allclose(jax.vmap(moved.mv)(jnp.eye(6)), matrix[turned][:, turned], atol=1e-12)
    rows = jax.random.normal(jax.random.key(0), (4, 6))
    expected = operator.permute_rotated(operator.rotate(rows).T, turned).T
    np.testing.assert_allclose(moved.rotate(rows[:, turned]), expected, atol=1e-12)


def test_operators_are_pytrees():
    for kind in KINDS:
        operator, matrix = make(kind)
        doubled = jax.jit(lambda op: op.mv(jnp.ones(7)))(operator)
        np.testing.assert_allclose(doubled, matrix @ jnp.ones(7), rtol=1e-5)


def test_an_unknown_structure_says_what_it_cannot_do():
    class Mine:
        pass

    with pytest.raises(TypeError, match="Mine"):
        whiten(Mine(), jnp.ones(3))
