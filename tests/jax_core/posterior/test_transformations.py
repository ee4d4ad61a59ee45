"""Posterior and predictive under JAX's transformations, of each structure and precision, against dense algebra."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_core.operators import Dense, Diagonal, LowRank
from jax_core.posterior import Posterior
from jax_core.predictive import linearized_predictive
from tests.cases import dense_ggn, dense_jacobian, mlp

pytestmark = pytest.mark.in_turns

PRIORS = np.array([0.5, 2.0, 9.0])
TOLERANCE = {"float32": 2e-4, "float64": 1e-9}
ROOT = np.cos(np.arange(51.0))


def curvature(structure):
    """The operator and its matrix, in float64."""
    matrix = dense_ggn(mlp(), "cross_entropy")
    if structure == "diagonal":
        return Diagonal(jnp.diagonal(matrix)), np.diag(np.diagonal(matrix))
    values, vectors = jnp.linalg.eigh(matrix)
    if structure == "dense":
        return Dense(values, vectors), np.asarray(matrix)
    values, vectors = values[-6:], vectors[:, -6:]
    return LowRank(vectors, values, jnp.zeros(())), np.asarray((vectors * values) @ vectors.T)


def of_posterior(case, operator, prior):
    """A quadratic form of the covariance and the log-determinant of the precision."""
    posterior = Posterior.create(case.params, operator, prior)
    vector = jnp.asarray(ROOT, prior.dtype)
    return jnp.stack([vector @ posterior.cov_flat(vector), posterior.logdet()])


def of_predictive(case, operator, prior):
    """The covariances of all outputs of all examples."""
    return linearized_predictive(case.model_fn, Posterior.create(case.params, operator, prior))(case.inputs).covariance


def dense_posterior(matrix, prior):
    """The same with its derivative by the prior precision."""
    covariance = np.linalg.inv(matrix + prior * np.eye(len(matrix)))
    product = covariance @ ROOT
    value = [ROOT @ product, -np.linalg.slogdet(covariance)[1]]
    return np.array(value), np.array([-product @ product, np.trace(covariance)])


def dense_predictive(matrix, prior):
    covariance, rows = np.linalg.inv(matrix + prior * np.eye(len(matrix))), np.asarray(dense_jacobian(mlp()))
    return rows @ covariance @ rows.swapaxes(1, 2), -rows @ covariance @ covariance @ rows.swapaxes(1, 2)


def total(values):
    """Every entry with a weight of its own."""
    return values.ravel() @ np.cos(np.arange(values.size)).astype(values.dtype)


def transformed(function, transformation, dtype, grad):
    """The function at the middle prior, at all of them, or the derivative there of its weighted sum."""
    priors = jnp.asarray(PRIORS, dtype)
    if transformation == "grad":
        return grad(lambda prior: total(function(prior)))(priors[1])
    return jax.jit(function)(priors[1]) if transformation == "jit" else jax.vmap(function)(priors)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("transformation", ["jit", "vmap", "grad"])
@pytest.mark.parametrize("structure", ["dense", "diagonal", "lowrank"])
@pytest.mark.parametrize(
    ("quantity", "reference", "grad"),
    # forward mode for the predictive, whose loop over examples has a length that only the run knows
    [(of_posterior, dense_posterior, jax.grad), (of_predictive, dense_predictive, jax.jacfwd)],
    ids=["posterior", "predictive"],
)
def test_transformed_is_the_dense_one(x64, quantity, reference, grad, structure, transformation, dtype):
    operator, matrix = curvature(structure)
    case = mlp()
    params, inputs, operator = jax.tree.map(lambda x: x.astype(dtype), (case.params, case.inputs, operator))
    case = dataclasses.replace(case, params=params, inputs=inputs)
    found = transformed(lambda prior: quantity(case, operator, prior), transformation, dtype, grad)
    values, slopes = (np.stack(found) for found in zip(*(reference(matrix, prior) for prior in PRIORS), strict=True))
    expected = {"jit": values[1], "vmap": values, "grad": total(slopes[1])}[transformation]
    assert found.dtype == dtype
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * scale)
