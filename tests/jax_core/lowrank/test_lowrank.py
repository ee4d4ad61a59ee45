"""Reductions against dense eigendecompositions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_core.lowrank import gram, lanczos, lobpcg, nystrom
from jax_core.lowrank.plan import Problem, choose
from jax_core.matrix_free import to_dense
from tests.cases import dense_ggn, mlp

pytestmark = pytest.mark.in_turns


def decaying(size: int = 40, seed: int = 0, decay: float = 0.6) -> tuple[jax.Array, np.ndarray]:
    """A matrix with a decaying spectrum, and that spectrum, largest first."""
    q = jnp.linalg.qr(jax.random.normal(jax.random.key(seed), (size, size)))[0]
    values = decay ** np.arange(size)
    return (q * values) @ q.T, values


def dense(operator):
    return (operator.U * operator.s) @ operator.U.T


def assert_orthonormal(operator, atol):
    np.testing.assert_allclose(operator.U.T @ operator.U, np.eye(operator.rank), atol=atol)


@given(size=st.integers(2, 12), rank_share=st.floats(0.01, 1.0))
def test_lanczos_gives_orthonormal_ritz_pairs_of_any_rank(size, rank_share):
    with jax.enable_x64(True):
        matrix, _ = decaying(size)
        rank = max(1, round(rank_share * size))
        found = lanczos(lambda v: matrix @ v, size, rank=rank, key=jax.random.key(0))
        assert found.U.shape == (size, rank)
        assert_orthonormal(found, 1e-10)
        assert found.s.max() <= 1 + 1e-10


def test_lanczos_at_full_rank_is_the_matrix(x64):
    case = mlp()
    expected = dense_ggn(case, "cross_entropy")  # rank deficient: the iteration meets an invariant subspace
    size = expected.shape[0]
    found = lanczos(lambda v: expected @ v, size, rank=size, key=jax.random.key(0))
    np.testing.assert_allclose(dense(found), expected, atol=1e-10)


def test_lanczos_at_full_rank_reproduces_the_spectrum_in_float32():
    with jax.enable_x64(True):
        exact = np.asarray(dense_ggn(mlp(), "cross_entropy"))
    expected, matrix = np.linalg.eigvalsh(exact)[::-1], jnp.asarray(exact, jnp.float32)
    found = lanczos(lambda v: matrix @ v, matrix.shape[0], rank=matrix.shape[0], key=jax.random.key(0))
    np.testing.assert_allclose(found.s, np.maximum(expected, 0), atol=1e-4 * expected[0])


def test_lanczos_converges_to_the_leading_eigenpairs(x64):
    matrix, values = decaying()
    found = lanczos(lambda v: matrix @ v, 40, rank=20, key=jax.random.key(0))
    np.testing.assert_allclose(found.s[:5], values[:5], rtol=1e-8)


def test_lanczos_takes_pytrees(x64):
    case = mlp()
    matrix = dense_ggn(case, "mse")
    flat, back = jax.flatten_util.ravel_pytree(case.params)

    def mv(tree):
        return back(matrix @ jax.flatten_util.ravel_pytree(tree)[0])

    found = lanczos(mv, case.params, rank=flat.size, key=jax.random.key(0))
    np.testing.assert_allclose(dense(found), matrix, atol=1e-9)


def test_nystrom_is_exact_for_a_matrix_of_lower_rank(x64):
    root = jax.random.normal(jax.random.key(0), (30, 4))
    matrix = root @ root.T
    found = nystrom(lambda rows: rows @ matrix, 30, rank=6, key=jax.random.key(1), dtype=jnp.float64)
    np.testing.assert_allclose(dense(found), matrix, atol=1e-9)
    assert_orthonormal(found, 1e-9)


def test_nystrom_never_exceeds_the_matrix(x64):
    matrix, _ = decaying(decay=0.8)
    found = nystrom(lambda rows: rows @ matrix, 40, rank=10, key=jax.random.key(1), dtype=jnp.float64)
    assert np.linalg.eigvalsh(np.asarray(matrix - dense(found))).min() > -1e-10


def test_more_passes_come_closer_to_the_best_rank(x64):
    matrix, values = decaying(decay=0.85)

    def error(passes):
        found = nystrom(
            lambda rows: rows @ matrix, 40, rank=8, key=jax.random.key(1), passes=passes, oversampling=2,
            dtype=jnp.float64,
        )  # fmt: skip
        return jnp.linalg.norm(matrix - dense(found), 2)

    errors = [float(error(passes)) for passes in (1, 2, 4)]
    assert errors[0] > errors[1] > errors[2] >= values[8] - 1e-10
    assert errors[2] < 1.1 * values[8]


def test_gram_is_exact(x64):
    rows = jax.random.normal(jax.random.key(0), (9, 25))
    np.testing.assert_allclose(dense(gram(rows)), rows.T @ rows, atol=1e-9)
    best = gram(rows, rank=3)
    values = np.linalg.eigvalsh(np.asarray(rows.T @ rows))[::-1]
    np.testing.assert_allclose(best.s, values[:3], rtol=1e-10)


@pytest.mark.parametrize("rows", [0, 3])
def test_gram_of_zero_rows_and_of_no_rows_is_zero(rows):
    found = gram(jnp.zeros((rows, 5)))
    assert found.s.tolist() == [0.0]
    assert_orthonormal(found, 1e-7)
    np.testing.assert_array_equal(found.shift(2.0).mv(jnp.ones(5)), 2 * np.ones(5))


def test_lobpcg_finds_the_leading_eigenpairs(x64):
    matrix, values = decaying()
    found = lobpcg(lambda rows: rows @ matrix, 40, rank=4, key=jax.random.key(0), max_iterations=60, dtype=jnp.float64)
    np.testing.assert_allclose(found.s, values[:4], rtol=1e-6)
    assert_orthonormal(found, 1e-8)


def test_rank_out_of_range_is_refused():
    for rank in (0, 6):
        with pytest.raises(ValueError, match=f"rank={rank}.*5 parameters"):
            lanczos(lambda v: v, 5, rank=rank, key=jax.random.key(0))
    with pytest.raises(ValueError, match="a fifth"):
        lobpcg(lambda rows: rows, 5, rank=2, key=jax.random.key(0))


def test_indefinite_operator_is_refused():
    signs = jnp.array([1.0, 1.0, -1.0, 1.0])
    with pytest.raises(ValueError, match="indefinite"):
        lanczos(lambda v: signs * v, 4, rank=4, key=jax.random.key(0))


def test_product_that_is_not_finite_is_refused():
    with pytest.raises(FloatingPointError, match="not finite"):
        lanczos(lambda v: v * jnp.nan, 4, rank=2, key=jax.random.key(0))
    with pytest.raises(FloatingPointError, match="not finite"):
        nystrom(lambda rows: rows * jnp.inf, 4, rank=2, key=jax.random.key(0))


PROBLEM = {
    "size": 28_714,
    "plain": 28_714,
    "factored": 0,
    "outputs": 10,
    "rows_per_sample": 4.4,
    "forward_flops": 6e6,
    "rank": 100,
    "rows_bytes": 2**29,
}


def test_plan_is_exact_where_rows_are_few():
    plan = choose(Problem(samples=128, **PROBLEM))
    assert (plan.method, plan.strategy) == ("gram", "rows")
    assert "563 rows" in plan.reason


def test_plan_reads_much_data_once():
    plan = choose(Problem(samples=60_000, **PROBLEM))
    assert (plan.method, plan.strategy) == ("nystrom", "rows")


def test_plan_takes_products_where_parameters_are_many_or_outputs_are():
    for change in (
        {"size": 11_000_000, "plain": 11_000_000, "forward_flops": 3e8, "rank": 20, "rows_per_sample": 10.0},
        {"outputs": 50_000},
    ):
        assert choose(Problem(samples=1000, **(PROBLEM | change))).strategy == "products"


def test_plan_takes_jacobians_where_dense_layers_hold_the_parameters():
    change = {"size": 824_458, "plain": 21_642, "factored": 802_816, "forward_flops": 9.4e6}
    plan = choose(Problem(samples=2_000, **(PROBLEM | change)))
    assert (plan.method, plan.strategy) == ("nystrom", "jacobians")


def test_dense_matrix_of_a_product_is_the_matrix(x64):
    matrix, _ = decaying(11)
    np.testing.assert_allclose(to_dense(lambda v: matrix @ v, 11, block_size=4), matrix, atol=1e-12)
