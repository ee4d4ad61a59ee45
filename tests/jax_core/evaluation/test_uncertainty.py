"""Entropy, mutual information and AUROC against scipy and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from jax_core.evaluation import auroc, mutual_information, predictive_entropy

seeds = st.integers(0, 2**16)


@given(seeds)
def test_entropy_equals_scipy(seed):
    prob = np.random.default_rng(seed).dirichlet(np.full(5, 0.3), 40)
    np.testing.assert_allclose(predictive_entropy(jnp.asarray(prob)), stats.entropy(prob, axis=-1), atol=2e-6)


def test_entropy_of_certainty_is_zero_and_of_ignorance_log_of_classes():
    np.testing.assert_allclose(predictive_entropy(jnp.asarray([[1.0, 0, 0, 0], [0.25] * 4])), [0, np.log(4)], rtol=1e-6)


@given(seeds)
def test_mutual_information_is_the_mean_divergence_from_the_mean(seed):
    samples = np.random.default_rng(seed).dirichlet(np.ones(4), (6, 10))  # (S, B, C)
    expected = stats.entropy(samples, samples.mean(0, keepdims=True), axis=-1).mean(0)
    np.testing.assert_allclose(mutual_information(jnp.asarray(samples)), expected, atol=2e-6)


def test_samples_that_agree_carry_no_mutual_information():
    prob = jnp.asarray(np.random.default_rng(0).dirichlet(np.ones(10), 100))
    information = mutual_information(jnp.broadcast_to(prob, (7, *prob.shape)))
    assert (information >= 0).all() and (information < 1e-6).all()


def test_samples_that_contradict_each_other_carry_all_of_it():
    np.testing.assert_allclose(mutual_information(jnp.eye(3)[:, None]), [np.log(3)], rtol=1e-6)


@given(seeds, st.sampled_from([1, 7, 60]), st.sampled_from([1, 9]), st.sampled_from([2, 5, 10_000]))
def test_auroc_equals_sklearn_with_ties_and_without(seed, inside, outside, levels):
    rng = np.random.default_rng(seed)
    scores_in, scores_out = rng.integers(0, levels, inside), rng.integers(levels // 2, levels * 2, outside)
    labels = np.r_[np.zeros(inside), np.ones(outside)]
    expected = roc_auc_score(labels, np.r_[scores_in, scores_out])
    mine = jax.jit(auroc)(jnp.asarray(scores_in, float), jnp.asarray(scores_out, float))
    np.testing.assert_allclose(mine, expected, atol=1e-6)


def test_auroc_without_foreign_scores_is_refused():
    with pytest.raises(ValueError, match="3 inside and 0 outside"):
        auroc(jnp.ones(3), jnp.ones(0))
