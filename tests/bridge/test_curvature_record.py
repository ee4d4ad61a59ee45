"""What is kept of a curvature in a file is the curvature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.curvature_record import arrays_of, kinds_of, operator_of
from jax_core.operators import BlockDiagonal, Dense, Diagonal, Kronecker, LowRank, Operator, RowBlocks, Symmetric


def _columns() -> RowBlocks:
    root = jax.random.normal(jax.random.key(1), (2, 2, 2))
    return RowBlocks.from_matrices(root @ jnp.swapaxes(root, 1, 2), across=True)


def operators() -> list[Operator]:
    root = jax.random.normal(jax.random.key(0), (5, 5))
    matrix = root @ root.T
    known = Symmetric.from_matrix(matrix).rescale(2.0)
    assert known.eigenvalues.shape == (5,)  # what is remembered beside the matrix is not kept
    return [
        known,
        Dense.from_matrix(matrix),  # of files in which "full" was kept as its eigenpairs
        Diagonal(jnp.arange(5.0)),
        Kronecker(None, jnp.ones((1, 1)), jnp.arange(5.0)[:, None]),  # of a table
        BlockDiagonal((Kronecker(jnp.eye(2), None, jnp.ones((2, 2))), Diagonal(jnp.ones(1)))),
        RowBlocks(jnp.arange(5.0)[:, None], jnp.ones((5, 1, 1))),
        BlockDiagonal((_columns(), Diagonal(jnp.ones(1)))),
        LowRank(jnp.eye(5)[:, :2], jnp.ones(2), jnp.zeros(())),
    ]


@pytest.mark.parametrize("operator", operators(), ids=lambda operator: type(operator).__name__)
def test_a_record_gives_the_operator_again(operator):
    found = operator_of(kinds_of(operator), arrays_of(operator))
    assert type(found) is type(operator)
    np.testing.assert_array_equal(found.mv(jnp.ones(5)), operator.mv(jnp.ones(5)))


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="Tridiagonal"):
        operator_of(["Tridiagonal"], {})
