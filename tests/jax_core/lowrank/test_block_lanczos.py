"""Block Lanczos against dense eigendecompositions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_core.lowrank import block_lanczos, lanczos
from tests.cases import dense_ggn, mlp


def found(matrix, rank, block_size):
    counted = []

    def block_mv(rows):
        counted.append(rows.shape[0])
        return rows @ matrix

    options = {"rank": rank, "key": jax.random.key(0), "block_size": block_size, "dtype": matrix.dtype}
    return block_lanczos(block_mv, matrix.shape[0], **options), counted


@given(size=st.integers(2, 14), share=st.floats(0.01, 1.0), block_size=st.integers(1, 6))
@settings(max_examples=12)
def test_pairs_are_orthonormal_and_passes_are_rank_over_block(size, share, block_size):
    with jax.enable_x64(True):
        root = jax.random.normal(jax.random.key(size), (size, max(1, size // 2)))
        rank = max(1, round(share * size))
        operator, counted = found(root @ root.T, rank, block_size)
        assert operator.U.shape == (size, rank)
        np.testing.assert_allclose(operator.U.T @ operator.U, np.eye(rank), atol=1e-10)
        assert len(counted) == -(-rank // block_size)


def test_full_rank_is_the_matrix_also_where_it_is_singular(x64):
    matrix = dense_ggn(mlp(), "cross_entropy")
    operator, _ = found(matrix, matrix.shape[0], 8)
    np.testing.assert_allclose((operator.U * operator.s) @ operator.U.T, matrix, atol=1e-10)


def test_a_block_of_one_is_lanczos(x64):
    matrix = dense_ggn(mlp(), "mse")
    single = lanczos(lambda v: matrix @ v, matrix.shape[0], rank=12, key=jax.random.key(0))
    operator, _ = found(matrix, 13, 1)  # as many steps as lanczos takes for twelve pairs
    np.testing.assert_allclose(operator.s[:3], single.s[:3], rtol=1e-6)


def test_what_is_no_precision_matrix_is_refused():
    with pytest.raises(ValueError, match="indefinite"):
        found(-jnp.eye(6), 3, 2)
    with pytest.raises(FloatingPointError, match="block 0"):
        found(jnp.full((6, 6), jnp.nan), 3, 2)
    with pytest.raises(ValueError, match="block_size=0"):
        found(jnp.eye(6), 3, 0)
    with pytest.raises(ValueError, match="rank=7"):
        found(jnp.eye(6), 7, 2)
