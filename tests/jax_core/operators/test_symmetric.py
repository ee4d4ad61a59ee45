"""Laws of a matrix that is factored for what is asked of it, against its eigenpairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_core.operators import Dense, Symmetric
from jax_core.posterior import Posterior


def semi_definite(size=40, rank=12, dtype=jnp.float64, largest=1.0):
    rows = jax.random.normal(jax.random.key(0), (rank, size), dtype)
    matrix = rows.T @ rows
    return matrix * (largest / jnp.linalg.eigvalsh(matrix)[-1])


def both(matrix):
    return Symmetric.from_matrix(matrix), Dense.from_matrix(matrix).apply(lambda w: jnp.maximum(w, 0.0))


@pytest.mark.parametrize("prior", [1e-3, 1.0, 1e4])
def test_a_factor_gives_what_eigenpairs_give(x64, prior):
    found, known = (Posterior.create(jnp.zeros(40), op, jnp.asarray(prior)) for op in both(semi_definite()))
    rows = jax.random.normal(jax.random.key(1), (3, 2, 40))
    for of in (lambda p: p.output_covariance(rows), lambda p: p.cov_flat(rows[0, 0])):
        np.testing.assert_allclose(of(found), of(known), rtol=1e-10)
    np.testing.assert_allclose(found.log_det_ratio(), known.log_det_ratio(), rtol=1e-10)
    np.testing.assert_allclose(found.logdet(), known.logdet(), rtol=1e-10)
    root = jax.vmap(found.scale_flat, 1, 1)(jnp.eye(40))
    np.testing.assert_allclose(root @ root.T, known.output_covariance(jnp.eye(40)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("prior", [1e-12, 1e-7, 1e-3, 1.0, 1e8])
def test_in_float32_a_factor_is_no_worse_than_eigenpairs_at_any_prior(prior):
    matrix = semi_definite(dtype=jnp.float32)
    values, vectors = np.linalg.eigh(np.asarray(matrix, np.float64))
    values = np.maximum(values, 0.0)
    exact = (vectors / (values + prior)) @ vectors.T
    found, known = (np.asarray(op.shift(prior).inverse().quadratic(jnp.eye(40)), np.float64) for op in both(matrix))
    error, before = (np.abs(covariance - exact).max() for covariance in (found, known))
    assert error < max(2 * before, 1e-5 * np.abs(exact).max())
    ratio = np.log1p(values / prior).sum()
    error, before = (abs(float(op.rescale(1 / prior).log1p_det()) - ratio) for op in both(matrix))
    assert error < max(2 * before, 1e-5 * ratio)


def test_a_prior_below_the_rounding_of_the_matrix_takes_eigenpairs():
    matrix = semi_definite(dtype=jnp.float32, largest=1e6) - 0.1 * jnp.eye(40)
    found, known = (op.shift(1e-3) for op in both(matrix))
    assert bool(jnp.isnan(jnp.linalg.cholesky(found.matrix())).any())
    np.testing.assert_allclose(found.inverse().mv(jnp.ones(40)), known.inverse().mv(jnp.ones(40)), rtol=1e-2)
    np.testing.assert_allclose(found.logdet(), known.logdet(), rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-3, 1e-6, 1e-9])
def test_the_determinant_keeps_the_digits_of_small_eigenvalues(scale):
    matrix = semi_definite(dtype=jnp.float32)
    expected = np.log1p(np.linalg.eigvalsh(np.asarray(matrix, np.float64)) * scale).sum()
    np.testing.assert_allclose(Symmetric.from_matrix(matrix).rescale(scale).log1p_det(), expected, rtol=1e-3)


def test_eigenpairs_are_computed_once_for_all_multiples_and_shifts(x64):
    operator = Symmetric.from_matrix(semi_definite())
    operator.shift(1.0).inverse(), operator.shift(1.0).logdet()
    assert not operator._eigenpairs  # a factor is enough
    expected = operator.shift(1.0).inverse().quadratic(jnp.eye(40))
    values = operator.rescale(2.0).eigenvalues
    np.testing.assert_allclose(operator.shift(3.0).eigenvalues, values / 2 + 3, rtol=1e-12)
    assert len(operator._eigenpairs) == 1
    np.testing.assert_allclose(operator.shift(1.0).inverse().quadratic(jnp.eye(40)), expected, atol=1e-12)


def test_eigenpairs_of_a_traced_matrix_stay_in_its_trace(x64):
    operator = Symmetric.from_matrix(semi_definite())
    values = jax.jit(lambda op: op.eigenvalues)(operator)
    np.testing.assert_allclose(operator.eigenvalues, values, atol=1e-12)
