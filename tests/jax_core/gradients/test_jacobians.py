"""Dense layers are found in the traced network, and their factors are the Jacobian that reverse mode writes out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jax_core.gradients.jacobians
from jax_core.gradients.jacobians import factored_jacobian, find_layout, jacobian
from jax_core.gradients.weight_order import find_order, in_order
from jax_core.xla.convolutions import with_fast_convolutions
from tests.cases import attention, cnn, mlp

pytestmark = pytest.mark.in_turns


@pytest.fixture(autouse=True)
def small_matrices_are_worth_it(monkeypatch):
    monkeypatch.setattr(jax_core.gradients.jacobians, "_WORTH", 1)


def normal(key, *shape):
    return jax.random.normal(jax.random.key(key), shape)


def both_layouts():
    """A network with weights as torch stores them, as flax does, and one inside a compiled function."""
    params = {"flax": normal(1, 5, 4), "bias": normal(2, 4), "torch": normal(3, 3, 4), "inner": normal(4, 3, 2)}

    def model(x, p):
        hidden = jax.nn.relu(x @ p["flax"] + p["bias"])
        hidden = jnp.tanh(p["torch"] @ hidden)[None]  # (1, 3)
        return jax.jit(lambda h, w: h @ w)(hidden, p["inner"])[0]

    return model, params, normal(5, 6, 5)


def in_gradients_order(model, params, example):
    """As everything that takes rows hands them over."""
    order = find_order(model, params, example)
    return in_order(model, order), order.of(params)


def factored_leaves(model, params, example):
    return [slot.leaf for slot in find_layout(*in_gradients_order(model, params, example), example).factored]


def test_dense_layers_are_found_however_they_are_stored():
    model, params, inputs = both_layouts()
    layout = find_layout(model, params, inputs[0])
    assert [slot.leaf for slot in layout.factored] == [3]  # the others are stored as (in, out)
    layout = find_layout(*in_gradients_order(model, params, inputs[0]), inputs[0])
    assert [(slot.leaf, slot.shape) for slot in layout.factored] == [(1, (4, 5)), (2, (2, 3)), (3, (3, 4))]
    assert [slot.leaf for slot in layout.plain] == [0]
    assert layout.size == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_layers_of_flax_models_are_found():
    graph, params = nnx.split(
        nnx.Sequential(nnx.Linear(4, 6, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(6, 2, rngs=nnx.Rngs(1)))
    )
    model, params = in_gradients_order(lambda x, p: nnx.call((graph, p))(x)[0], params, jnp.ones(4))
    layout = find_layout(model, params, jnp.ones(4))
    assert [slot.shape for slot in layout.factored] == [(6, 4), (2, 6)]


@pytest.mark.parametrize(
    "model",
    [
        lambda x, p: jnp.tanh(x @ p["w"]) @ p["w"],  # tied: the sum of two products' gradients
        lambda x, p: jax.jit(lambda a, b: (x @ a) @ b)(p["w"], p["w"]),
        lambda x, p: jnp.stack(4 * [x]) @ p["w"].T,  # shared between more vectors than pays
        lambda x, p: x @ p["w"] + p["w"].sum(),
        lambda x, p: x @ (jnp.arange(1.0, 4.0)[:, None] * p["w"]),  # a scale of what is summed over
        lambda x, p: jax.lax.fori_loop(0, 2, lambda i, h: h @ p["w"], x),
        lambda x, p: p["w"],
    ],
)
def test_weights_used_in_any_other_way_are_written_out(model):
    assert factored_leaves(model, {"w": normal(0, 3, 3)}, jnp.ones(3)) == []


def few_vectors():
    """Matrices that meet three vectors each, from the left and from the right, in a network of many outputs."""
    params = {"first": normal(1, 6, 2, 4), "second": normal(2, 5, 6)}

    def model(x, p):
        hidden = jnp.tanh(x @ p["first"].reshape(6, 8).T)  # (3, 6)
        return (p["second"] @ hidden.T).reshape(-1)  # (15,)

    return model, params, normal(3, 7, 3, 8)


def test_a_matrix_that_meets_few_vectors_stays_in_factors():
    model, params, inputs = few_vectors()
    layout = find_layout(model, params, inputs[0])
    assert [(slot.leaf, slot.vectors) for slot in layout.factored] == [(0, 3), (1, 3)]
    assert layout.factored_size == 3 * layout.size
    one_output = find_layout(lambda x, p: model(x, p)[:1], params, inputs[0])
    assert one_output.factored == ()


@pytest.mark.parametrize(
    "make",
    [both_layouts, few_vectors, *(lambda c=c: (c().model_fn, c().params, c().inputs) for c in (mlp, cnn, attention))],
)
def test_factors_are_the_jacobian(x64, make):
    model, params, inputs = make()
    model, params = in_gradients_order(with_fast_convolutions(model), params, inputs[0])
    layout = find_layout(model, params, inputs[0])
    assert layout.factored
    outputs, rows = jax.jit(lambda x: factored_jacobian(model, params, x, layout))(inputs)
    wanted_outputs, wanted = jax.vmap(lambda x: jacobian(model, params, x))(inputs)
    np.testing.assert_allclose(outputs, wanted_outputs, atol=1e-12)
    np.testing.assert_allclose(rows.dense(), wanted, atol=1e-12)


def test_small_matrices_are_written_out(monkeypatch):
    monkeypatch.setattr(jax_core.gradients.jacobians, "_WORTH", 2**12)
    model, params, inputs = both_layouts()
    assert factored_leaves(model, params, inputs[0]) == []
