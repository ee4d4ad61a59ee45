"""Laws that every operator obeys, against dense matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_core.operators import Dense, Diagonal, LowRank, Operator, logdet, whiten


def make(kind: str, size: int = 7, rank: int = 3) -> tuple[Operator, jax.Array]:
    """An operator and its dense matrix."""
    key = jax.random.key(size * 10 + rank)
    if kind == "diagonal":
        d = jax.random.uniform(key, (size,)) + 0.1
        return Diagonal(d), jnp.diag(d)
    if kind == "dense":
        root = jax.random.normal(key, (size, size))
        return Dense.from_matrix(root @ root.T), root @ root.T
    u = jnp.linalg.qr(jax.random.normal(key, (size, rank)))[0]
    s = jnp.arange(1.0, rank + 1)
    alpha = jnp.asarray(0.5)
    return LowRank(u, s, alpha), (u * s) @ u.T + alpha * jnp.eye(size)


KINDS = ("diagonal", "dense", "low_rank")


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
        turned = np.roll(np.arange(size), 1)
        np.testing.assert_allclose(operator.permute(turned).mv(v), matrix[turned][:, turned] @ v, atol=1e-11)
        np.testing.assert_allclose(operator.rescale(3.0).mv(v), 3 * matrix @ v, atol=1e-11)
        assert operator.size == size


@pytest.mark.parametrize("kind", KINDS)
def test_inverse_undoes_mv(x64, kind):
    operator, _ = make(kind)
    v = jax.random.normal(jax.random.key(1), (7,))
    shifted = operator.shift(1.0)
    np.testing.assert_allclose(shifted.apply(lambda x: 1 / x).mv(shifted.mv(v)), v, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
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


@pytest.mark.parametrize("kind", KINDS)
def test_whitening_scales_both_sides(x64, kind):
    operator, matrix = make(kind)
    if isinstance(operator, LowRank):
        operator, matrix = LowRank(operator.U, operator.s, jnp.zeros(())), matrix - 0.5 * jnp.eye(7)
    root = jax.random.uniform(jax.random.key(3), (7,)) + 0.2
    v = jax.random.normal(jax.random.key(1), (7,))
    np.testing.assert_allclose(whiten(operator, root).mv(v), root * (matrix @ (root * v)), atol=1e-11)
    np.testing.assert_allclose(whiten(operator, jnp.asarray(0.3)).mv(v), 0.09 * matrix @ v, atol=1e-11)


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
