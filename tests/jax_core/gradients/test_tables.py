"""Jacobians over a table that is looked up by row equal those of a product with vectors of zeros and a one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_core.gradients.jacobians import factored_jacobian, find_layout, jacobian
from jax_core.gradients.rotated import squares

pytestmark = pytest.mark.in_turns

MANY = 5


def normal(key, *shape):
    return jax.random.normal(jax.random.key(key), shape)


def looked_up(x, p):
    return jnp.tanh(p["table"][x] @ normal(9, 3, 4)).sum(0)


def taken(x, p):  # what is past the last row is zero, and the network goes on from there
    return jnp.tanh(jnp.take(p["table"], x, axis=0, mode="fill", fill_value=0) @ normal(9, 3, 4) + 1.0).sum(0)


def clipped(x, p):
    return jnp.tanh(jnp.take(p["table"], x, axis=0, mode="clip") @ normal(9, 3, 4)).sum(0)


def twice(x, p):
    return jnp.tanh(p["table"][x] * p["table"][x[::-1] // 2] @ normal(9, 3, 4)).sum(0)


@pytest.fixture
def given(x64):
    def rows(model):
        params = {"bias": jnp.ones(2), "table": normal(0, MANY, 3)}
        past = model in (taken, clipped)
        inputs = jax.random.randint(jax.random.key(5), (6, 4), 0, MANY + 2 if past else MANY)
        layout = find_layout(model, params, inputs[0], lambda leaf, sides: True)
        assert [slot.is_table for slot in layout.factored] == [True]
        outputs, found = factored_jacobian(model, params, inputs, layout)
        expected = [jacobian(model, params, x) for x in inputs]
        np.testing.assert_allclose(outputs, [output for output, _ in expected], atol=1e-12)
        return found, jnp.stack([written for _, written in expected])

    return rows


@pytest.mark.parametrize("model", [looked_up, taken, clipped, twice])
def test_they_multiply_out_to_the_jacobian(given, model):
    found, expected = given(model)
    np.testing.assert_allclose(found.dense(), expected, atol=1e-11)
    assert len(found.written().left) == 1  # however many vectors they meet


@pytest.mark.parametrize("model", [looked_up, taken, twice])
def test_products_are_those_of_the_jacobian(given, model):
    found, expected = given(model)
    vectors, weights = normal(1, 7, expected.shape[-1]), normal(2, *expected.shape[:2], 7)
    parts = found.layout.split(vectors)
    np.testing.assert_array_equal(found.layout.join(parts), vectors)
    np.testing.assert_allclose(found.times_rows(parts), expected @ vectors.T, atol=1e-10)
    back = found.layout.join(found.add_back(parts, weights))
    np.testing.assert_allclose(back, vectors + jnp.einsum("bcp,bck->kp", expected, weights), atol=1e-10)
    np.testing.assert_allclose(found.gram(), expected @ jnp.swapaxes(expected, 1, 2), atol=1e-10)
    np.testing.assert_allclose(found.layout.join(squares(found))[0], jnp.square(expected).sum((0, 1)), atol=1e-10)


def test_a_table_that_is_also_multiplied_the_other_way_round_is_written_out():
    def tied(x, p):
        return p["table"] @ jnp.tanh(p["table"][x]).sum(0)

    params = {"table": normal(0, MANY, 3)}
    assert not find_layout(tied, params, jnp.zeros(2, int), lambda leaf, sides: True).factored
