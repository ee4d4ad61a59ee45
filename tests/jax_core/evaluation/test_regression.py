"""Gaussian scores against scipy, scikit-learn, laplax and a quadrature."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats
from sklearn.metrics import root_mean_squared_error

from jax_core.evaluation import chi_squared, crps_gaussian, nll_gaussian, rmse

seeds = st.integers(0, 2**16)


def draw(seed, shape=(50,)):
    rng = np.random.default_rng(seed)
    mean, std = rng.normal(size=shape), rng.gamma(2.0, size=shape) + 0.1
    return [x.astype(np.float32) for x in (mean, std, mean + std * rng.normal(size=shape))]


@given(seeds)
def test_scores_equal_scipy_and_sklearn(seed):
    mean, std, target = draw(seed)
    np.testing.assert_allclose(rmse(mean, target), root_mean_squared_error(target, mean), rtol=1e-5)
    np.testing.assert_allclose(nll_gaussian(mean, std, target), -stats.norm.logpdf(target, mean, std).mean(), rtol=2e-5)
    np.testing.assert_allclose(chi_squared(mean, std, target), (((target - mean) / std) ** 2).mean(), rtol=1e-5)


@given(seeds)
def test_scores_equal_laplax(seed):
    from laplax.eval import metrics as laplax

    mean, std, target = map(jnp.asarray, draw(seed))
    pairs = [
        (chi_squared, laplax.chi_squared),
        (nll_gaussian, laplax.nll_gaussian),
        (crps_gaussian, laplax.crps_gaussian),
    ]
    for ours, theirs in pairs:
        np.testing.assert_allclose(
            ours(mean, std, target), theirs(pred_mean=mean, pred_std=std, target=target), rtol=1e-5, atol=1e-6
        )
    np.testing.assert_allclose(rmse(mean, target), laplax.estimate_rmse(mean, target), rtol=1e-6)


@given(seeds)
def test_crps_is_the_integral_of_the_squared_gap_between_distribution_functions(seed):
    (mean,), (std,), (target,) = draw(seed, (1,))
    low, high = mean - 12 * std, mean + 12 * std
    left = integrate.quad(lambda x: stats.norm.cdf(x, mean, std) ** 2, low, target)[0]
    right = integrate.quad(lambda x: stats.norm.sf(x, mean, std) ** 2, target, high)[0]
    np.testing.assert_allclose(crps_gaussian(*map(jnp.atleast_1d, (mean, std, target))), left + right, rtol=1e-4)


def test_chi_squared_of_calibrated_predictions_is_one():
    np.testing.assert_allclose(chi_squared(*draw(1, (200_000,))), 1.0, atol=0.02)


@pytest.mark.parametrize("score", [chi_squared, nll_gaussian, crps_gaussian])
@pytest.mark.usefixtures("unchecked_annotations")
def test_shapes_that_would_broadcast_are_refused(score):
    with pytest.raises(ValueError, match=r"\(3,\).*\(3, 1\)"):
        score(jnp.ones(3), jnp.ones(3), jnp.ones((3, 1)))


@pytest.mark.usefixtures("unchecked_annotations")
def test_rmse_refuses_shapes_that_would_broadcast():
    with pytest.raises(ValueError, match=r"\(3,\).*\(3, 1\)"):
        rmse(jnp.ones(3), jnp.ones((3, 1)))
