"""Predictives and links against dense algebra and sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jax_core
from jax_core import create_ggn_mv, create_posterior_fn, linearized_predictive
from jax_core.gradients.jacobian_maps import Sizes, map_jacobians
from jax_core.predictive.links import MonteCarlo, link_by_name
from tests.cases import CASES, cnn, dense_jacobian, mlp

pytestmark = pytest.mark.in_turns

LINKS = ("probit", "bridge", "bridge_norm", "mean_field_0", "mean_field_1", "mean_field_2")
PRIOR = {"prior_prec": 2.0}


def posterior_fn(case):
    mv = create_ggn_mv(case.model_fn, case.params, case.data("cross_entropy"), "cross_entropy")
    return create_posterior_fn("full", mv=mv, layout=case.params)


def gaussian(classes=3, batch=4):
    mean = 2 * jax.random.normal(jax.random.key(0), (batch, classes))
    root = jax.random.normal(jax.random.key(1), (batch, classes, classes))
    return mean, root @ jnp.swapaxes(root, 1, 2)


@pytest.mark.parametrize("case", CASES)
def test_batched_predictive_is_the_dense_one(x64, case):
    case = case()
    posterior = posterior_fn(case)(PRIOR)
    outputs = linearized_predictive(case.model_fn, posterior)(case.inputs)
    covariance = jax.vmap(posterior.cov_flat)(jnp.eye(posterior.size))
    jacobian = dense_jacobian(case)
    np.testing.assert_allclose(outputs.mean, jax.vmap(lambda x: case.model_fn(x, case.params))(case.inputs), atol=1e-12)
    expected = jnp.einsum("bcp,pq,bdq->bcd", jacobian, covariance, jacobian)
    np.testing.assert_allclose(outputs.covariance, expected, atol=1e-10)


@given(batch=st.integers(0, 23), chunk=st.integers(1, 5), group=st.integers(1, 3))
def test_chunks_and_padding_do_not_show(batch, chunk, group):
    case = mlp()
    inputs = jax.random.normal(jax.random.key(0), (batch, 4))
    run = map_jacobians(case.model_fn, case.params, lambda y, rows: (y, rows.sum(-1)), sizes=Sizes(chunk, group))
    outputs, sums = run(inputs)
    assert outputs.shape == sums.shape == (batch, 3)
    if batch:
        np.testing.assert_allclose(
            outputs, jax.vmap(lambda x: case.model_fn(x, case.params))(inputs), rtol=1e-4, atol=1e-5
        )


def test_pushforward_equals_the_batched_predictive(x64):
    case = cnn()
    steps = [jax_core.lin_setup, jax_core.lin_pred_mean, jax_core.lin_pred_cov, jax_core.lin_pred_std]
    push = jax_core.set_lin_pushforward(case.model_fn, case.params, posterior_fn(case), PRIOR, pushforward_fns=steps)
    results = jax.jit(jax.vmap(push))(case.inputs)
    expected = linearized_predictive(case.model_fn, posterior_fn(case)(PRIOR))(case.inputs)
    np.testing.assert_allclose(results["pred_mean"], expected.mean, atol=1e-12)
    np.testing.assert_allclose(results["pred_cov"], expected.covariance, atol=1e-11)
    np.testing.assert_allclose(
        results["pred_std"] ** 2, jnp.diagonal(expected.covariance, axis1=1, axis2=2), atol=1e-11
    )


def test_linearised_samples_have_the_exact_moments(x64):
    case = mlp()
    steps = [jax_core.lin_setup, jax_core.lin_pred_cov, jax_core.lin_mc_pred_act]
    push = jax_core.set_lin_pushforward(
        case.model_fn, case.params, posterior_fn(case), PRIOR, pushforward_fns=steps, key=jax.random.key(0),
        num_samples=50_000,
    )  # fmt: skip
    results = push(case.inputs[0])
    np.testing.assert_allclose(jnp.cov(results["samples"].T), results["pred_cov"], rtol=0.05, atol=0.02)
    np.testing.assert_allclose(results["mc_pred_act"].sum(), 1, rtol=1e-12)
    link = MonteCarlo(jax.random.key(1), 50_000)
    np.testing.assert_allclose(results["mc_pred_act"], link(results["map"], results["pred_cov"]), atol=0.01)


def test_sampled_predictive_tends_to_the_linearised_one_for_small_covariance(x64):
    case = mlp()
    prior = {"prior_prec": 1e6}
    steps = [jax_core.nonlin_setup, jax_core.nonlin_pred_mean, jax_core.nonlin_pred_cov, jax_core.nonlin_pred_std]
    push = jax_core.set_nonlin_pushforward(
        case.model_fn, case.params, posterior_fn(case), prior, pushforward_fns=steps, key=jax.random.key(0),
        num_samples=20_000,
    )  # fmt: skip
    results = push(case.inputs[0])
    exact = linearized_predictive(case.model_fn, posterior_fn(case)(prior))(case.inputs[:1])
    np.testing.assert_allclose(results["pred_cov"], exact.covariance[0], atol=0.05 * float(exact.covariance.max()))
    np.testing.assert_allclose(results["pred_mean"], exact.mean[0], atol=1e-3)


def test_kernel_holds_the_marginal_covariances(x64):
    case = mlp()
    kernel = jax_core.set_posterior_gp_kernel(case.model_fn, case.params, posterior_fn(case), PRIOR)
    joint = kernel(case.inputs, case.inputs)
    marginal = linearized_predictive(case.model_fn, posterior_fn(case)(PRIOR))(case.inputs).covariance
    np.testing.assert_allclose(jnp.einsum("acad->acd", joint), marginal, atol=1e-10)
    flat = joint.reshape(9 * 3, 9 * 3)
    np.testing.assert_allclose(flat, flat.T, atol=1e-10)


def test_steps_name_what_they_miss():
    case = mlp()
    for steps, message in (
        ([jax_core.lin_pred_cov], "lin_setup first"),
        ([jax_core.lin_setup, jax_core.lin_samples], "num_samples"),
    ):
        push = jax_core.set_lin_pushforward(
            case.model_fn, case.params, posterior_fn(case), PRIOR, pushforward_fns=steps
        )
        with pytest.raises(ValueError, match=message):
            push(case.inputs[0])


@pytest.mark.parametrize("name", LINKS)
def test_links_give_probabilities(name):
    mean, covariance = gaussian()
    probabilities = link_by_name(name)(mean, covariance)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-6)
    assert (probabilities >= 0).all()


@pytest.mark.parametrize("name", ["probit", "mean_field_0", "mean_field_1", "mean_field_2"])
def test_without_uncertainty_links_are_the_softmax(x64, name):
    mean, covariance = gaussian()
    np.testing.assert_allclose(link_by_name(name)(mean, 0 * covariance), jax.nn.softmax(mean), atol=1e-12)


@pytest.mark.parametrize("name", ["mean_field_1", "mean_field_2", "probit"])
def test_links_come_near_the_integral(x64, name):
    mean, covariance = gaussian()
    covariance = 0.3 * covariance
    exact = MonteCarlo(jax.random.key(0), 200_000)(mean, covariance)
    np.testing.assert_allclose(link_by_name(name)(mean, covariance), exact, atol=0.1)


def test_unknown_link_is_named():
    with pytest.raises(ValueError, match=r"'probbit'.*'probit'"):
        link_by_name("probbit")
    with pytest.raises(ValueError, match="needs a key"):
        link_by_name("mc")
