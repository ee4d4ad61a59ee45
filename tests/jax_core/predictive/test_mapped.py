"""Rows in factors lead to the predictive of written-out rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_core.jacobians
from jax_core import Diagonal, LowRank, Posterior
from jax_core.factored import FactoredRows, written_out
from jax_core.predictive import linearized_predictive, map_rows, mapped
from tests.cases import attention, cnn, dense_jacobian, mlp


@pytest.fixture(autouse=True)
def small_matrices_are_worth_it(monkeypatch):
    monkeypatch.setattr(jax_core.jacobians, "_WORTH", 1)


def posterior_of(case, prior=2.0):
    size = dense_jacobian(case).shape[-1]
    basis = jnp.linalg.qr(jax.random.normal(jax.random.key(3), (size, 5)))[0]
    return Posterior.create(case.params, LowRank(basis, jnp.arange(5.0, 0, -1), jnp.zeros(())), jnp.asarray(prior))


def dense_covariance(case, posterior):
    covariance = jax.vmap(posterior.cov_flat)(jnp.eye(posterior.size))
    rows = dense_jacobian(case)
    return rows @ covariance @ jnp.swapaxes(rows, 1, 2)


def test_dense_layers_come_in_factors(x64):
    case, seen = mlp(), []

    def function(outputs, rows):
        seen.append(type(rows))
        return written_out(rows)

    rows = map_rows(case.model_fn, case.params, function, factored=True)(case.inputs)
    assert set(seen) == {FactoredRows}
    np.testing.assert_allclose(rows, dense_jacobian(case), atol=1e-12)


def test_rows_stay_written_out_where_dense_layers_hold_few_parameters(x64):
    case, seen = attention(), []
    map_rows(case.model_fn, case.params, lambda y, rows: seen.append(type(rows)) or y, factored=True)(case.inputs)
    assert FactoredRows not in seen


@pytest.mark.parametrize("together", [1, 4, 64])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_predictive_is_the_dense_one_for_every_batch_size(x64, monkeypatch, together, count):
    monkeypatch.setattr(mapped, "_TOGETHER", together)
    case = mlp()
    posterior = posterior_of(case)
    found = linearized_predictive(case.model_fn, posterior)(case.inputs[:count])
    np.testing.assert_allclose(found.covariance, dense_covariance(case, posterior)[:count], atol=1e-10)
    assert found.mean.shape == (count, 3)


@pytest.mark.parametrize("make", [mlp, cnn])
def test_priors_per_parameter_and_other_structures_take_written_out_rows(x64, make):
    case = make()
    size = dense_jacobian(case).shape[-1]
    for posterior in (
        posterior_of(case, prior=jnp.linspace(1.0, 2.0, size)),
        Posterior.create(case.params, Diagonal(jnp.linspace(0.0, 3.0, size)), jnp.asarray(2.0)),
    ):
        assert not posterior.takes_factored
        found = linearized_predictive(case.model_fn, posterior)(case.inputs)
        np.testing.assert_allclose(found.covariance, dense_covariance(case, posterior), atol=1e-10)


def test_no_inputs_give_no_predictions(x64):
    case = mlp()
    found = linearized_predictive(case.model_fn, posterior_of(case))(case.inputs[:0])
    assert found.covariance.shape == (0, 3, 3)
