"""Held-out losses of a whole grid against one predictive at a time, objectives against sklearn and scipy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import log_loss

from jax_core.data.batches import Batch
from jax_core.likelihoods import Bernoulli, Categorical, Custom, Gaussian, Unweighted
from jax_core.operators import Dense, Diagonal, LowRank
from jax_core.posterior import Posterior
from jax_core.predictive import GaussianOutputs, linearized_predictive, probit
from jax_core.tuning import grid_search, held_out_losses, objective_by_name, predictions_on_grid
from tests.cases import attention, cnn, dense_ggn, dense_jacobian, mlp

pytestmark = pytest.mark.in_turns

GRID = np.array([0.03, 1.0, 4.0, 500.0])


@functools.cache
def wide(case):
    """The case, made once: programs are known by the model's identity."""
    with jax.enable_x64(True):
        return case()


def curvature(case, name):
    matrix = dense_ggn(case, "cross_entropy")
    values, vectors = jnp.linalg.eigh(matrix)
    if name == "lowrank":
        return LowRank(vectors[:, -5:], values[-5:], jnp.zeros(()))
    return Dense(jnp.maximum(values, 0), vectors) if name == "dense" else Diagonal(jnp.diagonal(matrix))


def probabilities(outputs):
    return probit(outputs.mean, outputs.covariance)


def ragged(case, targets, size=4):
    return [Batch(case.inputs[i : i + size], targets[i : i + size]) for i in range(0, len(targets), size)]


@pytest.mark.parametrize(
    ("case", "structure"),
    [(mlp, "dense"), (mlp, "lowrank"), (mlp, "diagonal"), (cnn, "lowrank"), (attention, "diagonal")],
)
def test_grid_holds_the_predictive_of_each_precision(x64, case, structure):
    case = wide(case)
    operator = curvature(case, structure)
    mean, covariance = predictions_on_grid(case.model_fn, case.params, operator, GRID, tuple)(case.inputs)
    batch, classes = len(case.inputs), case.classes
    assert mean.shape == (batch, 4, classes)
    assert covariance.shape == (batch, 4, classes, classes)
    for t, precision in enumerate(GRID):
        posterior = Posterior.create(case.params, operator, jnp.array(precision))
        alone = linearized_predictive(case.model_fn, posterior)(case.inputs)
        np.testing.assert_allclose(mean[:, t], alone.mean, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(covariance[:, t], alone.covariance, rtol=1e-9, atol=1e-13)


def test_grid_of_a_dense_curvature_is_dense_algebra(x64):
    case = wide(mlp)
    covariance = predictions_on_grid(case.model_fn, case.params, curvature(case, "dense"), GRID, tuple)(case.inputs)[1]
    rows, ggn = dense_jacobian(case), dense_ggn(case, "cross_entropy")
    for t, precision in enumerate(GRID):
        inverse = jnp.linalg.inv(ggn + precision * jnp.eye(len(ggn)))
        np.testing.assert_allclose(covariance[:, t], jnp.einsum("bcp,pq,bdq->bcd", rows, inverse, rows), rtol=1e-8)


@pytest.mark.parametrize(("structure", "size"), [("dense", 4), ("lowrank", 1), ("diagonal", 20)])
def test_losses_are_those_of_all_data_at_each_precision(x64, structure, size):
    case = wide(mlp)
    targets, operator = case.targets("cross_entropy"), curvature(case, structure)
    score = objective_by_name("nll", Categorical())
    batches = ragged(case, targets, size)
    losses = held_out_losses(case.model_fn, case.params, operator, batches, score, probabilities)(GRID)
    for precision, loss in zip(GRID, losses, strict=True):
        posterior = Posterior.create(case.params, operator, jnp.array(precision))
        alone = linearized_predictive(case.model_fn, posterior, probabilities)(case.inputs)
        np.testing.assert_allclose(loss, log_loss(targets, alone, labels=range(3)), rtol=1e-9)


def test_losses_of_a_regression_are_gaussian_densities(x64):
    case, noise = wide(mlp), 0.7
    targets, operator = case.targets("mse"), curvature(case, "lowrank")
    score = objective_by_name("nll", Gaussian(), sigma_noise=noise)
    batches = ragged(case, targets)
    losses = held_out_losses(case.model_fn, case.params, operator, batches, score, lambda outputs: outputs)(GRID)
    for precision, loss in zip(GRID, losses, strict=True):
        posterior = Posterior.create(case.params, operator, jnp.array(precision))
        mean, covariance = linearized_predictive(case.model_fn, posterior)(case.inputs)
        deviation = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2) + noise**2)
        np.testing.assert_allclose(loss, -norm(mean, deviation).logpdf(targets).mean(), rtol=1e-9)


def test_data_are_read_once_for_the_whole_grid(x64):
    case, reads = wide(mlp), []
    batches = ragged(case, case.targets("cross_entropy"))

    class Counting:
        def __iter__(self):
            reads.append(1)
            return iter(batches)

    score = objective_by_name("nll", Categorical())
    losses = held_out_losses(case.model_fn, case.params, curvature(case, "lowrank"), Counting(), score, probabilities)
    with np.testing.assert_raises_regex(ValueError, "positive"):
        grid_search(losses, [-1.0])
    assert not reads
    by_hand = losses(GRID)
    found = losses(GRID[1:3])
    assert len(reads) == 2
    np.testing.assert_allclose(found, by_hand[1:3], rtol=1e-10)


def test_own_scores_see_predictions_and_targets_of_all_data(x64):
    case = wide(mlp)
    targets, seen = case.targets("cross_entropy"), []

    def score(predictions, target):
        seen.append((predictions.shape, np.array(target)))
        return len(seen)

    losses = held_out_losses(
        case.model_fn, case.params, curvature(case, "diagonal"), ragged(case, targets), score, probabilities
    )
    np.testing.assert_array_equal(losses(GRID), [1, 2, 3, 4])
    for shape, target in seen:
        assert shape == (9, 3)
        np.testing.assert_array_equal(target, targets)


def gaussian_outputs():
    root = jax.random.normal(jax.random.key(0), (40, 2, 2))
    return GaussianOutputs(jax.random.normal(jax.random.key(1), (40, 2)), root @ jnp.swapaxes(root, 1, 2))


def test_categorical_objectives_are_sklearns_and_a_loop_over_bins(x64):
    prob = jax.nn.softmax(2 * jax.random.normal(jax.random.key(0), (200, 4)))
    target = jax.random.categorical(jax.random.key(1), jnp.log(prob))
    np.testing.assert_allclose(objective_by_name("nll", Categorical())(prob, target), log_loss(target, prob))
    confidence, correct = np.array(prob.max(-1)), np.array(prob.argmax(-1) == target)
    expected = 0.0
    for m in range(15):
        inside = (confidence >= m / 15) & (confidence < (m + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    np.testing.assert_allclose(objective_by_name("ece", Categorical())(prob, target), expected, rtol=1e-9)


def test_bernoulli_objective_is_torchs_and_certainty_is_no_nan(x64):
    score = objective_by_name("nll", Bernoulli())
    prob = jax.random.uniform(jax.random.key(0), (30, 5))
    target = jax.random.bernoulli(jax.random.key(1), 0.5, (30, 5)).astype(float)
    expected = torch.nn.functional.binary_cross_entropy(
        torch.tensor(np.array(prob)), torch.tensor(np.array(target)), reduction="sum"
    )
    np.testing.assert_allclose(score(prob, target), expected / 30, rtol=1e-9)
    assert score(jnp.array([[1.0, 0.0]]), jnp.array([[1, 0]])) == 0
    assert score(jnp.array([[1.0, 0.0]]), jnp.array([[0, 0]])) == jnp.inf


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_gaussian_objectives_add_the_noise(x64, noise):
    outputs = gaussian_outputs()
    target = jax.random.normal(jax.random.key(2), (40, 2))
    deviation = np.sqrt(np.diagonal(outputs.covariance, axis1=1, axis2=2) + noise**2)
    nll, chi2 = (objective_by_name(name, Gaussian(), sigma_noise=noise) for name in ("nll", "chi2"))
    np.testing.assert_allclose(nll(outputs, target), -norm(outputs.mean, deviation).logpdf(target).mean(), rtol=1e-9)
    standardised = (target - outputs.mean) / deviation
    np.testing.assert_allclose(chi2(outputs, target), abs((standardised**2).mean() - 1), rtol=1e-9)
    np.testing.assert_allclose(nll(outputs, target.reshape(-1)), nll(outputs, target), rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "likelihood"),
    [
        ("ece", Gaussian()),
        ("chi2", Categorical()),
        ("ece", Bernoulli()),
        ("chi2", Bernoulli()),
        ("nll", Unweighted()),
        ("nll", Custom(lambda f, y: 0.0)),
        ("nlll", Categorical()),
    ],
)
@pytest.mark.usefixtures("unchecked_annotations")
def test_objectives_that_do_not_go_with_the_likelihood_are_refused(name, likelihood):
    with pytest.raises(ValueError, match=f"'{name}'.*{type(likelihood).__name__}.*pass a score"):
        objective_by_name(name, likelihood)
