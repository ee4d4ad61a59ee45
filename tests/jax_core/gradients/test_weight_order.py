"""The order of gradients is found in the traced network, and no result depends on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_core.data.trees import flattener
from jax_core.gradients.weight_order import Order, find_order, in_order
from jax_core.xla.convolutions import with_fast_convolutions
from tests.cases import attention, cnn, mlp

pytestmark = pytest.mark.in_turns


def normal(key, *shape):
    return jax.random.normal(jax.random.key(key), shape)


def order_of(model, shape):
    return find_order(model, {"w": normal(0, *shape)}, jnp.ones((5, 6))).axes[0]


@pytest.mark.parametrize(
    ("model", "shape", "axes"),
    [
        (lambda x, p: x @ p["w"], (6, 4), (1, 0)),  # as flax stores a matrix
        (lambda x, p: x @ p["w"].T, (4, 6), (0, 1)),  # as torch does
        (lambda x, p: p["w"] @ x.T, (4, 6), (0, 1)),
        (lambda x, p: x @ jnp.moveaxis(p["w"], (0, 1), (-1, -2)).reshape(6, 4), (4, 2, 3, 1), (0, 2, 3, 1)),
        (lambda x, p: x @ p["w"].reshape(6, 4), (3, 1, 2, 4), (3, 0, 1, 2)),  # flax's kernels
        (lambda x, p: jax.jit(lambda w: x @ w)(p["w"]), (6, 4), (1, 0)),
    ],
)
def test_cotangents_come_first(model, shape, axes):
    assert order_of(model, shape) == axes


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (lambda x, p: x @ p["w"] + p["w"].sum(), (6, 4)),
        (lambda x, p: x @ p["w"].reshape(6, 2), (4, 3)),  # splits an axis
        (lambda x, p: jnp.einsum("bi,bio->bo", x, p["w"]), (5, 6, 4)),
        (lambda x, p: x * p["w"], (5, 6)),
        (lambda x, p: jnp.einsum("bi,hio->bho", x, p["w"]), (2, 6, 4)),  # outputs on both sides of inputs
        (lambda x, p: jnp.einsum("bhi,hoi->bo", x.reshape(5, 2, 3), p["w"]), (2, 4, 3)),
        (lambda x, p: x, (6, 4)),
    ],
)
def test_weights_used_in_any_other_way_stay_as_stored(model, shape):
    assert order_of(model, shape) == tuple(range(len(shape)))


def test_leaves_without_elements_stay_as_stored():
    assert order_of(lambda x, p: p["w"].reshape(4, 0) @ x[:0], (0, 4)) == (0, 1)


@settings(deadline=None, max_examples=30)
@given(st.permutations(range(3)), st.permutations(range(2)))
def test_positions_are_those_of_the_flattened_parameters(first, second):
    params = {"a": normal(1, 2, 3, 4), "b": normal(2, 5), "c": normal(3, 3, 2)}
    order = Order((tuple(first), (0,), tuple(second)))
    flat = flattener(params)[0](params)
    moved = flattener(order.of(params))[0](order.of(params))
    np.testing.assert_array_equal(flat[order.positions(params)], moved)
    np.testing.assert_array_equal(moved[order.places(params)], flat)
    jax.tree.map(np.testing.assert_array_equal, order.undo(order.of(params)), params)


@pytest.mark.parametrize("make", [mlp, cnn, attention])
def test_the_model_is_the_same_function(x64, make):
    case = make()
    model = with_fast_convolutions(case.model_fn)
    order = find_order(model, case.params, case.inputs[0])
    assert not order.as_stored
    found = jax.vmap(lambda x: in_order(model, order)(x, order.of(case.params)))(case.inputs)
    np.testing.assert_allclose(found, jax.vmap(lambda x: case.model_fn(x, case.params))(case.inputs), atol=1e-12)
