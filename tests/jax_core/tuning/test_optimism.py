"""The covariance penalty, against algebra, finite differences and refits to targets drawn anew."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jax.tree_util import Partial
from scipy.special import expit, log_expit

from jax_core.operators import Dense, Diagonal, LowRank
from jax_core.predictive import mean_field_2, probit
from jax_core.tuning.families import ClassFamily, LabelFamily
from jax_core.tuning.marginals import Marginals
from jax_core.tuning.optimism import effective_parameters, penalty_table, responses

TEMPERATURES = np.array([0.5, 1.0, 2.0])


def spectra():
    values = jnp.asarray(np.geomspace(1e-2, 1e3, 6))
    basis = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (6, 6)))[0]
    return {
        "dense": Dense(values, basis),
        "diagonal": Diagonal(values),
        "lowrank": LowRank(basis, values, jnp.zeros(())),
    }


@pytest.mark.parametrize("structure", ["dense", "diagonal", "lowrank"])
@pytest.mark.parametrize("precision", [1e-3, 1.0, 500.0])
def test_effective_parameters_are_those_of_the_spectrum(x64, structure, precision):
    values = np.geomspace(1e-2, 1e3, 6)
    found = effective_parameters(spectra()[structure], precision)
    np.testing.assert_allclose(found, (values / (values + precision)).sum(), rtol=1e-2)


def gaussian(classes, priors=2):
    root = jax.random.normal(jax.random.key(0), (5, priors, classes, classes))
    return Marginals(jax.random.normal(jax.random.key(1), (5, classes)), root @ jnp.swapaxes(root, -1, -2))


def response(classes):
    return jax.random.normal(jax.random.key(2), (5, classes, classes))


def families(classes):
    return LabelFamily() if classes == 1 else ClassFamily(Partial(mean_field_2))


@pytest.mark.parametrize("classes", [1, 3])
def test_penalties_are_traces_of_finite_differences(x64, classes):
    family, marginals, given = families(classes), gaussian(classes), response(classes)
    found = penalty_table(family, marginals, given, jnp.asarray(TEMPERATURES))
    assert found.shape == (5, 2, 3)
    step = 1e-6
    for t in range(2):
        for k, temperature in enumerate(TEMPERATURES):

            def natural(logits, t=t, temperature=temperature):
                return family.natural(logits / temperature, marginals.covariance[:, t] / temperature**2)

            total = np.zeros(5)
            for c in range(classes):
                moved = step * given[:, :, c]
                up, down = natural(marginals.mean + moved), natural(marginals.mean - moved)
                total += np.asarray((up - down)[:, c] / (2 * step))
            np.testing.assert_allclose(found[:, t, k], total, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("classes", [1, 4])
def test_without_uncertainty_the_penalty_is_akaikes_over_the_temperature(x64, classes):
    none = gaussian(classes)._replace(covariance=jnp.zeros((5, 1, classes, classes)))
    family, seen = families(classes), jnp.array([True, True, True, True, False])
    own = responses(family, none.mean, gaussian(classes).covariance[:, 0], seen, 0.3)
    found = penalty_table(family, none, own, jnp.asarray(TEMPERATURES))[:, 0]
    # the loss has no slope along logits that all grow alike, and H has none of them
    np.testing.assert_allclose(found[:4].mean(0), 0.3 / TEMPERATURES, rtol=1e-9)


def test_a_probability_that_underflows_is_never_free_of_penalty(x64):
    sure = Marginals(jnp.array([[0.0, 1e4]]), jnp.zeros((1, 1, 2, 2)))
    found = penalty_table(families(2), sure, jnp.eye(2)[None], jnp.array([1.0, 1e3]))
    assert np.isposinf(found[0, 0, 0])
    assert np.isfinite(found[0, 0, 1])


def test_many_classes_are_probed_without_bias(x64):
    marginals, given = gaussian(40, priors=1), jnp.broadcast_to(jnp.eye(40), (5, 40, 40))
    found = penalty_table(ClassFamily(Partial(probit)), marginals, given, jnp.asarray(TEMPERATURES))
    exact = np.trace(
        jax.vmap(jax.jacfwd(lambda m, v: ClassFamily(Partial(probit)).natural(m[None], v[None])[0]))(
            marginals.mean, marginals.covariance[:, 0]
        ),
        axis1=1,
        axis2=2,
    )
    np.testing.assert_allclose(found[:, 0, 1], exact, rtol=0.1)


def test_the_penalty_is_what_logistic_regression_owes_to_its_own_targets(x64):
    rng = np.random.default_rng(0)
    inputs, prior = rng.normal(size=(120, 4)), 1.0

    def fitted(labels):
        def loss(w):
            z = inputs @ w
            return -(labels * log_expit(z) + (1 - labels) * log_expit(-z)).sum() + 0.5 * prior * w @ w

        return scipy.optimize.minimize(loss, np.zeros(4), method="BFGS").x

    truth = inputs @ np.array([1.0, -0.5, 0.3, 0.0])
    p, owed, expected = expit(truth), [], []
    for _ in range(150):
        labels = (rng.random(120) < p).astype(float)
        z = inputs @ fitted(labels)
        owed.append(((p - labels) * -z).mean())  # new targets of the same inputs in the place of those it was fitted to
        weights = expit(z) * expit(-z)
        covariance = inputs @ np.linalg.inv(inputs.T @ (weights[:, None] * inputs) + prior * np.eye(4)) @ inputs.T
        variance = jnp.asarray(np.diag(covariance))[:, None, None]
        logits = jnp.asarray(z)[:, None]
        trace = float(
            effective_parameters(Dense.from_matrix(jnp.asarray(inputs.T @ (weights[:, None] * inputs))), prior)
        )
        own = responses(LabelFamily(), logits, variance, jnp.ones(120, bool), trace / 120)
        np.testing.assert_allclose(own[:, 0, 0], variance[:, 0, 0] * weights, rtol=1e-2)
        none = Marginals(logits, jnp.zeros((120, 1, 1, 1)))
        expected.append(float(penalty_table(LabelFamily(), none, own, jnp.ones(1)).mean()))
    error = np.std(owed) / np.sqrt(len(owed))
    assert abs(np.mean(owed) - np.mean(expected)) < 3 * error
    assert np.mean(expected) > 5 * error
