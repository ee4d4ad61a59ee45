"""Jacobians in pieces of any size, and the joint predictive, against dense algebra."""

import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from jax_core.gradients.jacobian_maps import Sizes, map_jacobians
from jax_core.operators import Dense, Diagonal, LowRank
from jax_core.posterior import Posterior, prior_vector
from jax_core.predictive import joint_predictive, linearized_predictive
from tests.cases import CASES, attention, cnn, dense_ggn, dense_jacobian, flatten, mlp

pytestmark = pytest.mark.in_turns

CROSSED = [(mlp, "dense"), (mlp, "lowrank"), (mlp, "diagonal"), (cnn, "lowrank"), (attention, "dense")]


@functools.cache
def wide(case):
    """The case, made once: programs are known by the model's identity."""
    with jax.enable_x64(True):
        return case()


def posterior_of(case, structure, prior=2.0):
    matrix = dense_ggn(case, "mse")
    values, vectors = jnp.linalg.eigh(matrix)
    if structure == "lowrank":
        matrix = (vectors[:, -6:] * values[-6:]) @ vectors[:, -6:].T
        operator = LowRank(vectors[:, -6:], values[-6:], jnp.zeros(()))
    elif structure == "diagonal":
        matrix = jnp.diag(jnp.diagonal(matrix))
        operator = Diagonal(jnp.diagonal(matrix))
    else:
        operator = Dense.from_matrix(matrix)
    prior = prior_vector(prior, case.params)
    precision = matrix + jnp.diag(jnp.broadcast_to(prior, (len(matrix),)))
    return Posterior.create(case.params, operator, prior), jnp.linalg.inv(precision)


@pytest.mark.parametrize(("case", "structure"), CROSSED)
def test_joint_covariance_is_the_dense_one(x64, case, structure):
    case = wide(case)
    posterior, covariance = posterior_of(case, structure)
    joint = joint_predictive(case.model_fn, posterior)(case.inputs)
    rows = dense_jacobian(case)
    np.testing.assert_allclose(joint.mean, jax.vmap(lambda x: case.model_fn(x, case.params))(case.inputs), atol=1e-12)
    np.testing.assert_allclose(joint.covariance, jnp.einsum("acp,pq,bdq->acbd", rows, covariance, rows), atol=1e-9)


@pytest.mark.parametrize(("case", "structure"), CROSSED)
def test_joint_blocks_on_the_diagonal_are_the_marginals(x64, case, structure):
    case = wide(case)
    per_layer = jnp.linspace(0.5, 3, len(jax.tree.leaves(case.params)))
    posterior, _ = posterior_of(case, structure, per_layer)
    joint = joint_predictive(case.model_fn, posterior)(case.inputs)
    alone = linearized_predictive(case.model_fn, posterior)(case.inputs)
    np.testing.assert_allclose(joint.mean, alone.mean, atol=1e-12)
    np.testing.assert_allclose(jnp.einsum("acad->acd", joint.covariance), alone.covariance, atol=1e-10)


def test_joint_covariance_is_symmetric_and_positive(x64):
    case = wide(mlp)
    posterior, _ = posterior_of(case, "dense")
    flat = joint_predictive(case.model_fn, posterior)(case.inputs).covariance.reshape(27, 27)
    np.testing.assert_allclose(flat, flat.T, atol=1e-12)
    assert jnp.linalg.eigvalsh(flat).min() > -1e-12


def test_joint_predictive_of_no_inputs_is_empty():
    case = mlp()
    joint = joint_predictive(case.model_fn, posterior_of(case, "dense")[0])(case.inputs[:0])
    assert joint.mean.shape == (0, 3)
    assert joint.covariance.shape == (0, 3, 0, 3)


@pytest.mark.parametrize("case", CASES)
def test_mapped_jacobians_are_the_dense_ones(x64, case):
    case = wide(case)
    outputs, rows = map_jacobians(case.model_fn, case.params, lambda y, j: (y, j))(case.inputs)
    np.testing.assert_allclose(outputs, jax.vmap(lambda x: case.model_fn(x, case.params))(case.inputs), atol=1e-12)
    np.testing.assert_allclose(rows, dense_jacobian(case), atol=1e-11)


def rows_and_outputs(outputs, rows):
    return {"rows": rows, "y": outputs}


@pytest.mark.parametrize("sizes", [Sizes(1, 1), Sizes(3, 1), Sizes(1, 4), Sizes(2, 3)])
def test_sizes_and_padding_never_show_in_the_jacobians(x64, sizes):
    case = wide(mlp)
    inputs = jax.random.normal(jax.random.key(0), (13, 4))
    flat, back = jax.flatten_util.ravel_pytree(case.params)
    expected = jax.jacfwd(lambda p: jax.vmap(lambda x: case.model_fn(x, back(p)))(inputs))(flat)
    run = map_jacobians(case.model_fn, case.params, rows_and_outputs, sizes=sizes)
    for batch in range(14):
        found = run(inputs[:batch])
        assert found["rows"].shape == (batch, 3, 51)
        assert found["y"].dtype == found["rows"].dtype == jnp.float64
        np.testing.assert_allclose(found["rows"], expected[:batch], atol=1e-12)


@pytest.mark.parametrize("sizes", [None, Sizes(2, 3)])
def test_predictions_of_an_example_do_not_depend_on_its_batch(x64, sizes):
    case = wide(mlp)
    run = map_jacobians(case.model_fn, case.params, lambda y, j: j @ jnp.swapaxes(j, 1, 2), sizes=sizes)
    whole = run(case.inputs)
    for size in (1, 4):
        parts = [run(case.inputs[i : i + size]) for i in range(0, 9, size)]
        np.testing.assert_allclose(jnp.concatenate(parts), whole, atol=1e-12)


def test_padding_repeats_examples_and_so_stays_in_a_models_domain(x64):
    """A model that divides by its input's norm must meet no zero input, whose NaN would spread."""
    params = {"w": jnp.ones((4, 2))}

    def model(x, p):
        return (x / jnp.sqrt((x**2).sum())) @ p["w"]

    with jax.debug_nans(True):
        found = map_jacobians(model, params, lambda y, j: y, sizes=Sizes(4, 2))(mlp().inputs[:3])
    assert jnp.isfinite(found).all()


@pytest.mark.parametrize("batch", [0, 1, 5])
def test_inputs_may_be_pytrees(batch):
    def model(x, p):
        return p["a"] * x["left"].sum() + p["b"] * x["right"][1]

    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    inputs = {"left": jnp.arange(3.0 * batch).reshape(batch, 3), "right": (jnp.ones(batch), jnp.arange(1.0 * batch))}
    outputs, rows = map_jacobians(model, params, lambda y, j: (y, j), sizes=Sizes(2, 2))(inputs)
    sums = inputs["left"].sum(1)
    np.testing.assert_allclose(outputs, jnp.stack([sums + inputs["right"][1]] * 2, 1), rtol=1e-6)
    np.testing.assert_allclose(rows[:, 0, 0], sums, rtol=1e-6)
    np.testing.assert_array_equal(rows[:, 0, 1], jnp.zeros(batch))


def test_parameters_flatten_in_the_jacobian_as_everywhere_else(x64):
    case = wide(mlp)
    rows = map_jacobians(case.model_fn, case.params, lambda y, j: j)(case.inputs)
    tangent = jax.tree.map(jnp.cos, case.params)
    pushed = jax.jvp(lambda p: jax.vmap(lambda x: case.model_fn(x, p))(case.inputs), (case.params,), (tangent,))[1]
    np.testing.assert_allclose(rows @ flatten(tangent), pushed, atol=1e-12)
