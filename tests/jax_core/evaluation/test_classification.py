"""Class probabilities against scikit-learn and torchmetrics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk
from torchmetrics.functional import accuracy as tm_accuracy

from jax_core.evaluation import accuracy, brier, correctness, nll_categorical


def draw(seed, size=257, classes=7):
    rng = np.random.default_rng(seed)
    prob = rng.dirichlet(np.full(classes, 0.5), size).astype(np.float32) + np.float32(1e-6)
    return prob / prob.sum(1, keepdims=True), rng.integers(0, classes, size)


seeds = st.integers(0, 2**16)


@given(seeds)
def test_correctness_and_accuracy_equal_sklearn(seed):
    prob, target = draw(seed)
    hits = correctness(jnp.asarray(prob), jnp.asarray(target))
    assert hits.dtype == bool
    np.testing.assert_array_equal(hits, prob.argmax(1) == target)
    np.testing.assert_allclose(
        accuracy(jnp.asarray(prob), jnp.asarray(target)), sk.accuracy_score(target, prob.argmax(1)), rtol=1e-6
    )


@pytest.mark.parametrize("top_k", [1, 2, 5, 7])
def test_top_k_accuracy_equals_torchmetrics(top_k):
    prob, target = draw(3)
    expected = tm_accuracy(
        torch.from_numpy(prob),
        torch.from_numpy(target),
        task="multiclass",
        num_classes=7,
        top_k=top_k,
        average="micro",
    )
    np.testing.assert_allclose(accuracy(jnp.asarray(prob), jnp.asarray(target), top_k=top_k), expected, rtol=1e-6)


@given(seeds)
def test_nll_equals_sklearn_log_loss(seed):
    prob, target = draw(seed)
    double = prob.astype(np.float64)
    expected = sk.log_loss(target, double / double.sum(1, keepdims=True), labels=range(7))
    np.testing.assert_allclose(nll_categorical(jnp.asarray(prob), jnp.asarray(target)), expected, rtol=1e-5)


@given(seeds)
def test_brier_of_two_classes_is_twice_sklearns_binary_score(seed):
    prob, target = draw(seed, classes=2)
    expected = 2 * sk.brier_score_loss(target, prob[:, 1].astype(np.float64), labels=[0, 1])
    np.testing.assert_allclose(brier(jnp.asarray(prob), jnp.asarray(target)), expected, rtol=1e-5)


def test_brier_is_zero_for_certainty_and_two_for_certain_error():
    sure = jnp.eye(3)
    assert brier(sure, jnp.arange(3)) == 0
    assert brier(sure, (jnp.arange(3) + 1) % 3) == 2


@pytest.mark.parametrize("metric", [correctness, accuracy, nll_categorical, brier])
def test_one_hot_targets_give_the_same_score(metric):
    prob, target = map(jnp.asarray, draw(11))
    np.testing.assert_array_equal(metric(prob, target), metric(prob, jax.nn.one_hot(target, 7)))


@pytest.mark.parametrize("metric", [correctness, nll_categorical, brier])
def test_mean_over_single_samples_is_the_score_of_the_batch(metric):
    prob, target = map(jnp.asarray, draw(5))
    singly = jax.jit(jax.vmap(metric))(prob, target)
    np.testing.assert_allclose(singly.mean(), metric(prob, target).mean(), rtol=1e-5)


@pytest.mark.parametrize("metric", [correctness, accuracy, nll_categorical, brier])
def test_target_of_another_shape_is_refused_with_both_shapes(metric):
    with pytest.raises(ValueError, match=r"\(4, 1\).*\(4, 3\)"):
        metric(jnp.ones((4, 3)) / 3, jnp.zeros((4, 1), int))


def test_impossible_top_k_is_refused():
    with pytest.raises(ValueError, match="top_k=4"):
        accuracy(jnp.ones((2, 3)), jnp.zeros(2, int), top_k=4)


def test_nll_of_an_impossible_target_is_infinite():
    assert jnp.isinf(nll_categorical(jnp.asarray([[1.0, 0.0]]), jnp.asarray([1])))
