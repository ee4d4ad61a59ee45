"""Regression whose noise is an output, against torch's loss and the expected Hessian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jax_core.likelihoods import Heteroscedastic, as_likelihood, dense_hessian

pytestmark = pytest.mark.usefixtures("x64")
LIKELIHOOD = Heteroscedastic()


def outputs_and_targets(*shape):
    outputs = jax.random.normal(jax.random.key(0), (5, *shape[:-1], 2 * shape[-1]))
    return outputs, jax.random.normal(jax.random.key(1), (5, *shape))


@pytest.mark.parametrize("shape", [(1,), (3,), (4, 2)])
def test_the_loss_is_torchs(shape):
    outputs, targets = outputs_and_targets(*shape)
    mean, log_variance = (torch.from_numpy(np.array(part)) for part in jnp.split(outputs, 2, axis=-1))
    wanted = torch.nn.GaussianNLLLoss(full=True, reduction="none", eps=1e-12)(
        mean, torch.from_numpy(np.array(targets)), log_variance.exp()
    )
    np.testing.assert_allclose(LIKELIHOOD.nll(outputs, targets), wanted.flatten(1).sum(1), rtol=1e-12)


def test_the_curvature_is_the_expected_hessian():
    outputs, targets = outputs_and_targets(2)
    mean, log_variance = jnp.split(outputs, 2, axis=-1)
    # the Hessian is quadratic in each target: three points of Gauss and Hermite give its expectation exactly
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    weights = weights / weights.sum()
    hessian = jax.vmap(jax.hessian(lambda f, y: LIKELIHOOD.nll(f[None], y[None])[0]))
    expected = sum(
        a * b * hessian(outputs, mean + jnp.exp(log_variance / 2) * jnp.array([x, y]))
        for x, a in zip(nodes, weights, strict=True)
        for y, b in zip(nodes, weights, strict=True)
    )
    np.testing.assert_allclose(dense_hessian(LIKELIHOOD, outputs, targets), expected, atol=1e-12)


def test_samples_have_the_moments_that_the_outputs_say():
    outputs = jnp.array([[1.0, -2.0, 0.0, 2.0]])
    draws = jax.vmap(lambda key: LIKELIHOOD.sample(key, outputs)[0])(jax.random.split(jax.random.key(0), 20_000))
    np.testing.assert_allclose(draws.mean(0), [1.0, -2.0], atol=0.1)
    np.testing.assert_allclose(draws.var(0), np.exp([0.0, 2.0]), rtol=0.05)


def test_an_odd_number_of_outputs_is_refused():
    with pytest.raises(ValueError, match="an even number on the last axis"):
        LIKELIHOOD.nll(jnp.ones((2, 3)), jnp.ones((2, 1)))


def test_the_name_stands_for_it():
    assert as_likelihood("heteroscedastic") == LIKELIHOOD
