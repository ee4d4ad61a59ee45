"""Predictives of sampled weights against what is exact in a linear model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_core.operators import Dense, Diagonal, LowRank
from jax_core.posterior import Posterior
from jax_core.predictive import linearized_predictive, moments, sampled_predictive
from tests.cases import CASES, dense_ggn, flatten, mlp

pytestmark = pytest.mark.in_turns

MODELS, INPUTS = 100, 4


@functools.cache
def wide(case):
    """The case, made once: programs are known by the model's identity."""
    with jax.enable_x64(True):
        return case()


def linear(x, params):
    """Many independent linear models at once: each draw of the weights is one draw for every model."""
    return params["w"] @ x + params["b"]


def linear_posterior(structure):
    """Of each model, one and the same 5 x 5 covariance; and that covariance."""
    root = jax.random.normal(jax.random.key(0), (5, 3))
    curvature = root @ root.T
    mean = {"b": jnp.arange(float(MODELS)) / 10.0, "w": jax.random.normal(jax.random.key(1), (MODELS, INPUTS))}
    if structure == "diagonal":
        curvature = jnp.diag(jnp.diagonal(curvature))
    # flattened parameters are all b, then all w row by row: model m owns b_m and w_m
    own = np.concatenate([np.arange(MODELS)[:, None], MODELS + np.arange(MODELS * INPUTS).reshape(MODELS, -1)], 1)
    values, vectors = jnp.linalg.eigh(curvature)
    columns = np.zeros((5 * MODELS, MODELS, 5))
    for m in range(MODELS):
        columns[own[m], m] = vectors
    columns = jnp.asarray(columns[:, :, ::-1])  # largest eigenvalue first
    operator = {
        "dense": Dense(jnp.tile(values[::-1], MODELS), columns.reshape(5 * MODELS, -1)),
        "lowrank": LowRank(
            columns[:, :, :3].reshape(5 * MODELS, -1), jnp.tile(values[::-1][:3], MODELS), jnp.zeros(())
        ),
        "diagonal": Diagonal(jnp.zeros(5 * MODELS).at[own].set(jnp.diagonal(curvature))),
    }[structure]
    return Posterior.create(mean, operator, jnp.array(2.0)), jnp.linalg.inv(curvature + 2.0 * jnp.eye(5))


@pytest.mark.parametrize("structure", ["dense", "lowrank", "diagonal"])
def test_samples_of_a_linear_model_have_the_posteriors_moments(x64, structure):
    posterior, covariance = linear_posterior(structure)
    inputs = jax.random.normal(jax.random.key(2), (3, INPUTS))
    run = sampled_predictive(linear, posterior, key=jax.random.key(3), num_samples=200)
    samples = run(inputs)  # (S, B, M)
    expected = jax.vmap(lambda x: linear(x, posterior.mean))(inputs)
    deviations = jnp.swapaxes(samples - expected, 1, 2).reshape(200 * MODELS, 1, 3)  # 20,000 draws of 3 outputs
    found = moments(deviations)
    rows = jnp.concatenate([jnp.ones((3, 1)), inputs], axis=1)
    exact = rows @ covariance @ rows.T
    scale = float(jnp.sqrt(jnp.diagonal(exact).max()))
    # 20,000 draws: standard errors are 0.7 % of a standard deviation and 1 % of a variance; four of them
    np.testing.assert_allclose(found.mean[0], 0, atol=0.03 * scale)
    np.testing.assert_allclose(found.covariance[0], exact, atol=0.04 * scale**2)


@pytest.mark.parametrize("case", CASES)
def test_samples_tend_to_the_networks_own_output_as_curvature_grows(x64, case):
    case = wide(case)
    own = jax.vmap(lambda x: case.model_fn(x, case.params))(case.inputs)
    size = flatten(case.params).size
    errors = []
    for scale in (1e2, 1e4, 1e6):
        posterior = Posterior.create(case.params, Diagonal(jnp.full(size, scale)), jnp.array(1.0))
        samples = sampled_predictive(case.model_fn, posterior, key=jax.random.key(0), num_samples=20)(case.inputs)
        assert samples.shape == (20, *own.shape)
        errors.append(float(jnp.abs(moments(samples).mean - own).max()))
    # deviations of the weights shrink with the root of the curvature
    assert errors[1] < errors[0] / 5
    assert errors[2] < errors[1] / 5
    assert errors[2] < 1e-2


def test_small_deviations_have_the_linearised_covariance(x64):
    case = wide(mlp)
    posterior = Posterior.create(case.params, Dense.from_matrix(dense_ggn(case, "mse")), jnp.array(1e4))
    exact = linearized_predictive(case.model_fn, posterior)(case.inputs)
    samples = sampled_predictive(case.model_fn, posterior, key=jax.random.key(0), num_samples=600)(case.inputs)
    found = moments(samples)
    # 600 draws: the standard error of a variance is 6 %
    np.testing.assert_allclose(found.covariance, exact.covariance, atol=0.25 * float(exact.covariance.max()))
    np.testing.assert_allclose(found.mean, exact.mean, atol=0.2 * float(exact.covariance.max()) ** 0.5)


def test_all_batches_meet_the_same_weights():
    case = mlp()
    posterior = Posterior.create(case.params, Diagonal(jnp.ones(51)), jnp.array(1.0))
    run = sampled_predictive(case.model_fn, posterior, key=jax.random.key(0), num_samples=5)
    whole = run(case.inputs)
    np.testing.assert_allclose(jnp.concatenate([run(case.inputs[:4]), run(case.inputs[4:])], 1), whole, atol=1e-5)
    again = sampled_predictive(case.model_fn, posterior, key=jax.random.key(0), num_samples=5)(case.inputs)
    np.testing.assert_array_equal(again, whole)
    other = sampled_predictive(case.model_fn, posterior, key=jax.random.key(1), num_samples=5)(case.inputs)
    assert jnp.abs(other - whole).min(axis=(1, 2)).max() > 0
    assert run(case.inputs[:0]).shape == (5, 0, 3)


def test_draws_are_those_of_the_networks_parameters(x64):
    """Each sample is the network at some weights: a model that returns its weights shows them."""
    size = 51
    posterior = Posterior.create(mlp().params, Diagonal(jnp.linspace(1, 9, size)), jnp.array(1.0))
    run = sampled_predictive(lambda x, p: x * flatten(p), posterior, key=jax.random.key(0), num_samples=400)
    weights = run(jnp.ones((1,)))[:, 0]
    standardised = (weights - flatten(posterior.mean)) * jnp.sqrt(jnp.linspace(2, 10, size))
    # 20,400 standard normals: the mean's standard error is 0.007, the variance's 0.01
    np.testing.assert_allclose(standardised.mean(), 0, atol=0.03)
    np.testing.assert_allclose(standardised.var(), 1, atol=0.04)


@pytest.mark.parametrize("shape", [(6, 4), (6, 2, 2), (6,)])
def test_moments_are_numpys(x64, shape):
    samples = jax.random.normal(jax.random.key(0), (50, *shape))
    found = moments(samples)
    flat = np.array(samples).reshape(50, 6, -1)
    np.testing.assert_allclose(found.mean, flat.mean(0), atol=1e-13)
    for i in range(6):
        np.testing.assert_allclose(found.covariance[i], np.cov(flat[:, i].T).reshape(found.covariance[i].shape))


def test_one_sample_has_no_spread():
    found = moments(jnp.ones((1, 4, 3)))
    np.testing.assert_array_equal(found.mean, jnp.ones((4, 3)))
    np.testing.assert_array_equal(found.covariance, jnp.zeros((4, 3, 3)))


@pytest.mark.parametrize("count", [0, -3])
def test_fewer_than_one_draw_is_refused(count):
    posterior = Posterior.create(mlp().params, Diagonal(jnp.ones(51)), jnp.array(1.0))
    with pytest.raises(ValueError, match=f"num_samples={count}"):
        sampled_predictive(mlp().model_fn, posterior, key=jax.random.key(0), num_samples=count)
