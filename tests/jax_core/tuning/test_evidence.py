"""The evidence's maximum against brute force, its loss and gradient against dense determinants."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_core.operators import Dense, Diagonal, LowRank
from jax_core.posterior import Posterior, log_marginal_likelihood, prior_vector
from jax_core.tuning import evidence_loss, evidence_on_grid, gradient_descent, maximize_evidence, spectrum
from tests.cases import dense_ggn, flatten, mlp

pytestmark = pytest.mark.in_turns

STRUCTURES = ("dense", "lowrank", "diagonal")
PRIORS = ("scalar", "per_layer", "diagonal", "tree")


def curvature(name):
    """A curvature of the small MLP and the same as a matrix."""
    matrix = 30 * dense_ggn(mlp(), "cross_entropy")
    values, vectors = jnp.linalg.eigh(matrix)
    if name == "dense":
        return Dense(jnp.maximum(values, 0.0), vectors), matrix
    if name == "lowrank":
        kept = LowRank(vectors[:, -7:], values[-7:], jnp.zeros(()))
        return kept, (vectors[:, -7:] * values[-7:]) @ vectors[:, -7:].T
    return Diagonal(jnp.diagonal(matrix)), jnp.diag(jnp.diagonal(matrix))


def prior(name):
    params = mlp().params
    return {
        "scalar": jnp.array(2.0),
        "per_layer": jnp.array([0.5, 1.0, 2.0, 40.0]),
        "diagonal": jnp.linspace(0.1, 5, flatten(params).size),
        "tree": jax.tree.map(lambda leaf: 0.3 + leaf**2, params),
    }[name]


def test_maximum_is_that_of_a_fine_grid():
    values = np.array([1e4, 300.0, 2.0, 0.1, 0.0])
    found = maximize_evidence(values, 5, 3.0)
    grid = np.exp(np.linspace(-18, 23, 400_001))
    loss = 0.5 * (np.log1p(values[:, None] / grid).sum(0) + grid * 3.0)
    np.testing.assert_allclose(found.prior_precision, grid[loss.argmin()], rtol=1e-3)
    np.testing.assert_allclose(found.loss, loss.min(), rtol=1e-9)


def test_fixed_point_of_mackay_holds():
    values = np.geomspace(1e-2, 1e5, 50)
    tau = maximize_evidence(values, 50, 7.0).prior_precision
    effective = (values / (values + tau)).sum()
    np.testing.assert_allclose(tau, effective / 7.0, rtol=1e-5)


def test_no_curvature_warns_at_the_edge():
    with pytest.warns(UserWarning, match="edge of the search"):
        maximize_evidence(np.zeros(3), 3, 1.0)


@pytest.mark.usefixtures("unchecked_annotations")
def test_spectrum_is_the_eigenvalues():
    for operator in (
        Diagonal(jnp.array([1.0, 2.0])),
        Dense.from_matrix(jnp.diag(jnp.array([1.0, 2.0]))),
        LowRank(jnp.eye(3)[:, :2], jnp.array([1.0, 2.0]), jnp.zeros(())),
    ):
        np.testing.assert_allclose(np.sort(spectrum(operator)), [1, 2], rtol=1e-6)
    with pytest.raises(TypeError, match="not at hand"):
        spectrum(object())


@pytest.mark.parametrize("precision", PRIORS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_loss_is_the_negative_log_evidence_without_its_fit(x64, structure, precision):
    mean, given = mlp().params, prior(precision)
    operator, matrix = curvature(structure)
    loss = evidence_loss(operator, mean, prior_mean=0.1)(given)
    evidence = log_marginal_likelihood(
        Posterior.create(mean, operator, prior_vector(given, mean)), -3.0, prior_mean=0.1
    )
    np.testing.assert_allclose(loss, -(evidence.total + 3.0), rtol=1e-10)
    diagonal = jnp.broadcast_to(prior_vector(given, mean), (len(matrix),))
    ratio = jnp.linalg.slogdet(matrix + jnp.diag(diagonal))[1] - jnp.log(diagonal).sum()
    scatter = (diagonal * (flatten(mean) - 0.1) ** 2).sum()
    np.testing.assert_allclose(loss, 0.5 * (ratio + scatter), rtol=1e-9)


@pytest.mark.parametrize("precision", ["scalar", "per_layer", "diagonal"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_gradient_is_that_of_finite_differences(x64, structure, precision):
    loss = evidence_loss(curvature(structure)[0], mlp().params)
    start = jnp.log(prior(precision))
    gradient = jax.grad(lambda p: loss(jnp.exp(p)))(start).reshape(-1)
    steps = 1e-5 * jnp.eye(start.size).reshape(-1, *start.shape)
    shifted = jax.jit(jax.vmap(lambda step: loss(jnp.exp(start + step)) - loss(jnp.exp(start - step))))
    np.testing.assert_allclose(gradient, shifted(steps) / 2e-5, rtol=1e-6, atol=1e-8)


def test_gradient_exists_where_eigenvalues_coincide(x64):
    rows = jnp.eye(51)
    for operator in (Dense(jnp.ones(51), rows), LowRank(rows[:, :5], jnp.ones(5), jnp.zeros(()))):
        gradient = jax.grad(evidence_loss(operator, mlp().params))(jnp.ones(4))
        assert jnp.isfinite(gradient).all()


@pytest.mark.usefixtures("unchecked_annotations")
def test_loss_of_another_operator_is_refused():
    with pytest.raises(TypeError, match="not at hand"):
        evidence_loss(object(), mlp().params)(1.0)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_loss_on_a_grid_is_smallest_near_the_maximum(x64, structure):
    mean = mlp().params
    operator, _ = curvature(structure)
    best = maximize_evidence(spectrum(operator), 51, float((flatten(mean) ** 2).sum()))
    losses = evidence_on_grid(evidence_loss(operator, mean), best.precisions)
    np.testing.assert_allclose(losses, best.losses, rtol=1e-7)
    assert best.loss <= losses.min() + 1e-9


@pytest.mark.mixed_dtypes  # optax mixes Python floats and an int32 count
@pytest.mark.parametrize("structure", STRUCTURES)
def test_ascent_of_the_evidence_meets_the_exact_maximum(x64, structure):
    mean = mlp().params
    operator, _ = curvature(structure)
    best = maximize_evidence(spectrum(operator), 51, float((flatten(mean) ** 2).sum()))
    found = gradient_descent(evidence_loss(operator, mean), 30.0, steps=300)
    assert found.loss < found.losses[0]
    np.testing.assert_allclose(found.prior_precision, best.prior_precision, rtol=5e-3)
    np.testing.assert_allclose(found.loss, best.loss, rtol=1e-6)


@pytest.mark.mixed_dtypes  # optax mixes Python floats and an int32 count
@pytest.mark.parametrize("structure", STRUCTURES)
def test_layers_reach_mackays_fixed_points_and_a_larger_evidence(x64, structure):
    mean = mlp().params
    operator, matrix = curvature(structure)
    loss = evidence_loss(operator, mean)
    scalar = maximize_evidence(spectrum(operator), 51, float((flatten(mean) ** 2).sum()))
    found = gradient_descent(loss, np.full(4, scalar.prior_precision), steps=500)
    assert found.loss <= scalar.loss
    slope = jax.grad(lambda p: loss(jnp.exp(p)))(jnp.log(found.prior_precision))
    np.testing.assert_allclose(slope, 0, atol=5e-3)
    covariance = jnp.linalg.inv(matrix + jnp.diag(prior_vector(found.prior_precision, mean)))
    ends = np.cumsum([leaf.size for leaf in jax.tree.leaves(mean)])[:-1]
    parts = zip(jnp.split(jnp.diagonal(covariance), ends), jnp.split(flatten(mean), ends), strict=True)
    for tau, (variance, weights) in zip(found.prior_precision, parts, strict=True):
        effective = weights.size - tau * variance.sum()
        np.testing.assert_allclose(tau * (weights**2).sum(), effective, atol=2e-2)
