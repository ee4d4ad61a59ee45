"""Prior precision and noise of a regression, against the exact marginal density of a linear model and scipy."""

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal, norm

from jax_core.tuning.evidence import log_det_of_spectrum
from jax_core.tuning.noise import noisy_evidence, noisy_held_out


def linear(seed=0, n=40, size=5):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(n, size)) * np.array([3, 2, 1, 0.5, 0.1])
    return inputs, inputs @ rng.normal(size=size) / 2 + 0.4 * rng.normal(size=n)


def test_the_largest_evidence_is_that_of_the_exact_density():
    inputs, targets = linear()

    def exact(logs):
        precision, variance = np.exp(logs)
        covariance = inputs @ inputs.T / precision + variance * np.eye(len(targets))
        return -multivariate_normal.logpdf(targets, np.zeros(len(targets)), covariance)

    best = scipy.optimize.minimize(exact, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-9})
    # the weights depend on lambda, so the mode is found again at the optimum, as after a second training
    ratio = np.exp(best.x).prod()
    weights = np.linalg.solve(inputs.T @ inputs + ratio * np.eye(5), inputs.T @ targets)
    error = ((targets - inputs @ weights) ** 2).sum()
    values = np.linalg.eigvalsh(inputs.T @ inputs)

    def value(logs):
        precision, variance = np.exp(logs)
        fit = (error / variance + precision * weights @ weights + 40 * np.log(2 * np.pi * variance)) / 2
        return fit + 0.5 * np.log1p(values / (precision * variance)).sum()

    np.testing.assert_allclose(value(best.x), best.fun, rtol=1e-9)  # a Laplace approximation is exact here
    found = noisy_evidence(log_det_of_spectrum(values), float(weights @ weights), float(error), 40)
    brute = scipy.optimize.minimize(value, best.x, method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-9})
    np.testing.assert_allclose(found.loss, brute.fun, rtol=1e-7)
    np.testing.assert_allclose([found.prior_precision, found.sigma_noise**2], np.exp(brute.x), rtol=1e-3)


def predicted(inputs, train, targets, ratio):
    inverse = np.linalg.inv(train.T @ train + ratio * np.eye(5))
    return inputs @ inverse @ (train.T @ targets), np.einsum("ni,ij,nj->n", inputs, inverse, inputs)


def test_held_out_noise_is_the_best_at_every_ratio():
    train, targets = linear()
    inputs, new = linear(1)
    ratios = np.geomspace(1e-2, 1e4, 7)
    residual = (new - inputs @ np.linalg.lstsq(train, targets, rcond=None)[0])[:, None]
    spread = np.stack([predicted(inputs, train, targets, r)[1] for r in ratios], 1)[..., None]
    found, network = noisy_held_out(residual, spread, ratios, None)
    for t in range(len(ratios)):

        def loss(log_sigma, t=t):
            deviation = np.exp(log_sigma) * np.sqrt(1 + spread[:, t, 0])
            return -norm(0, deviation).logpdf(residual[:, 0]).mean()

        brute = scipy.optimize.minimize_scalar(loss, bounds=(-5, 5), method="bounded")
        np.testing.assert_allclose(found.losses[t], brute.fun, rtol=1e-6)
        np.testing.assert_allclose(found.precisions[t], ratios[t] / np.exp(2 * brute.x), rtol=1e-3)
    np.testing.assert_allclose(network, -norm(0, np.sqrt((residual**2).mean())).logpdf(residual).mean())
    assert found.loss <= network + 1e-12


@given(st.integers(0, 10**6), st.booleans())
def test_held_out_loss_is_never_above_the_networks(seed, known):
    rng = np.random.default_rng(seed)
    residual, ratios = rng.normal(size=(8, 2)), np.geomspace(0.1, 100, 5)
    spread = rng.exponential(size=(8, 1, 2)) / ratios[:, None]
    noise = rng.exponential(size=2) + 0.1 if known else None
    found, network = noisy_held_out(residual, spread, ratios, noise)
    assert found.loss <= network + 1e-9
    assert (found.sigma_noise is None) == known


@pytest.mark.parametrize("outputs", [1, 3])
def test_known_noise_is_kept(outputs):
    rng = np.random.default_rng(0)
    noise, ratios = rng.exponential(size=outputs) + 0.5, np.geomspace(0.1, 100, 5)
    spread = rng.exponential(size=(9, 1, outputs)) / ratios[:, None]
    residual = rng.normal(size=(9, outputs))
    found, _ = noisy_held_out(residual, spread, ratios, noise)
    for t in range(5):
        expected = -norm(0, np.sqrt(noise**2 + spread[:, t])).logpdf(residual).mean()
        np.testing.assert_allclose(found.losses[t], expected, rtol=1e-9)
    np.testing.assert_array_equal(found.precisions, ratios)
