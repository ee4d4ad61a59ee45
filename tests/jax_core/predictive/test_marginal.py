"""Variances row by row against the exact covariance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_core import Dense, Diagonal, LowRank, Posterior, linearized_predictive, marginal_predictive, probit
from tests.cases import CASES, dense_ggn


def posteriors(case):
    matrix = dense_ggn(case, "mse")
    dense = Dense.from_matrix(matrix)
    low = LowRank(dense.eigenvectors[:, -5:], dense.eigenvalues[-5:], jnp.zeros(()))
    for operator in (dense, low, Diagonal(jnp.diagonal(matrix))):
        yield Posterior.create(case.params, operator, jnp.asarray(0.7))


@pytest.mark.parametrize("make", CASES)
def test_variances_are_the_diagonal_of_the_covariance(x64, make):
    case = make()
    for posterior in posteriors(case):
        exact = linearized_predictive(case.model_fn, posterior)(case.inputs)
        mean, variance = marginal_predictive(case.model_fn, posterior)(case.inputs)
        np.testing.assert_allclose(mean, exact.mean, atol=1e-12)
        np.testing.assert_allclose(variance, jnp.diagonal(exact.covariance, axis1=1, axis2=2), rtol=1e-9)


def test_more_outputs_than_a_block_and_the_probit_link(x64):
    weights = jax.random.normal(jax.random.key(0), (3, 19))
    posterior = Posterior.create(weights, Diagonal(jnp.arange(57.0)), jnp.asarray(2.0))

    def model_fn(x, params):
        return jnp.tanh(x @ params)

    inputs = jax.random.normal(jax.random.key(1), (4, 3))
    exact = linearized_predictive(model_fn, posterior)(inputs)
    found = marginal_predictive(model_fn, posterior, lambda outputs: probit(*outputs))(inputs)
    np.testing.assert_allclose(found, probit(*exact), rtol=1e-9)


def test_an_empty_batch_is_refused():
    posterior = Posterior.create(jnp.ones((3, 2)), Diagonal(jnp.ones(6)), jnp.asarray(1.0))
    with pytest.raises(ValueError, match="no examples"):
        marginal_predictive(lambda x, p: x @ p, posterior)(jnp.zeros((0, 3)))
