"""An embedding's table has the Kronecker block of the same table as a dense layer, whose inputs are zeros and a one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_core import Posterior, linearized_predictive
from jax_core.operators import Kronecker, add
from tests.cases import Case
from tests.jax_core.kronecker.test_fit import STRUCTURES, dense, fit

pytestmark = pytest.mark.in_turns

MANY = 6


def _tail(rows, p):
    return jnp.tanh(jnp.tanh(rows) @ p["w"] + p["b"]).mean(0) @ p["out"]


def looked_up(x, p):
    return _tail(p["table"][x], p)


def multiplied(x, p):
    return _tail(jax.nn.one_hot(x, MANY, dtype=float) @ p["table"], p)


def case(model):
    keys = iter(jax.random.split(jax.random.key(0), 5))
    shapes = {"table": (MANY, 4), "w": (4, 5), "b": (5,), "out": (5, 3)}
    params = {name: jax.random.normal(next(keys), shape) for name, shape in shapes.items()}
    inputs = jax.random.randint(next(keys), (9, 5), 0, MANY - 1)  # the last row is never met
    return Case("table", model, params, inputs, 3)


TABLE = slice(20, 44)  # after five numbers of "b" and fifteen of "out"


@pytest.mark.parametrize("structure", STRUCTURES)
def test_it_is_the_block_of_a_dense_layer(x64, structure):
    found, expected = (fit(case(model), structure, rank=3).curvature for model in (looked_up, multiplied))
    assert jnp.abs(dense(expected)[TABLE, TABLE]).max() > 1e-2
    np.testing.assert_allclose(dense(found), dense(expected), atol=1e-10)


def test_it_is_expanded_where_others_are_reduced(x64):
    reduced, expanded = (fit(case(looked_up), "kron", kfac_approx=how).curvature for how in ("reduce", "expand"))
    np.testing.assert_allclose(dense(reduced)[TABLE], dense(expanded)[TABLE], atol=1e-12)
    of_dense_layers = fit(case(multiplied), "kron", kfac_approx="reduce").curvature
    others = np.delete(np.arange(reduced.size), TABLE)
    np.testing.assert_allclose(dense(reduced)[others], dense(of_dense_layers)[others], atol=1e-10)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_no_matrix_of_its_rows_is_formed_and_predictions_are_those_of_the_block(x64, structure):
    one = case(looked_up)
    curvature = fit(one, structure, rank=3).curvature
    part = curvature.parts[2]
    assert isinstance(part, Kronecker) and part.left is None and part.right.shape == (4, 4)
    posterior = Posterior.create(one.params, curvature, jnp.asarray(2.0))
    found = linearized_predictive(one.model_fn, posterior)(one.inputs)
    covariance = jnp.linalg.inv(dense(curvature) + 2 * jnp.eye(curvature.size))
    rows = jax.vmap(jax.jacrev(lambda p, x: one.model_fn(x, p)), (None, 0))(one.params, one.inputs)
    flat = jnp.concatenate([leaf.reshape(9, 3, -1) for leaf in jax.tree.leaves(rows)], -1)
    np.testing.assert_allclose(found.covariance, flat @ covariance @ jnp.swapaxes(flat, 1, 2), atol=1e-9)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_more_data_are_added_as_to_a_dense_layer(x64, structure):
    def both(model):
        parts = [fit(dataclasses.replace(case(model), inputs=some), structure, rank=3).curvature for some in halves]
        return dense(add(*parts))

    halves = case(looked_up).inputs[:5], case(looked_up).inputs[5:]
    np.testing.assert_allclose(both(looked_up), both(multiplied), atol=1e-9)


def test_the_plan_counts_it_among_kronecker_blocks():
    assert "3 Kronecker blocks" in fit(case(looked_up), "kron").plan.reason
