"""A model is its head after its trunk, and a trunk is there where it saves something."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_core.data.trees import get_bytes
from jax_core.frozen import features, split
from jax_core.xla.chunks import example_shapes
from tests.cases import cnn, mlp

WIDTH = 48


def normal(key, *shape):
    return jax.random.normal(jax.random.key(key), shape) / shape[0] ** 0.5


FROZEN = {"w1": normal(1, 8, WIDTH), "w2": normal(2, WIDTH, WIDTH), "w3": normal(3, WIDTH, 3)}


def layers(frozen, x, params):
    """Three layers, with whatever of them is covered taken from the parameters."""
    w = {**frozen, **params}
    hidden = jax.nn.relu(x @ w["w1"] + w.get("b1", 0.0))
    hidden = jax.nn.gelu(hidden @ (w["w2"] + w.get("low", 0.0)) + w.get("b2", 0.0))
    return hidden @ w["w3"]


def tied(frozen, x, params):
    """The last layer's weights are those of the first."""
    return (jnp.tanh(x @ params["w"]) @ frozen["w2"]) @ params["w"].T


def masked(frozen, x, params):
    """Features of another type, and a value that the head has cheaply from a smaller one."""
    tokens = (x[:4] > 0).astype(jnp.int32)
    rows = jnp.tanh(frozen["w2"][tokens] @ frozen["w2"])  # (4, WIDTH)
    seen = jnp.broadcast_to(tokens[:, None] > 0, rows.shape)
    return jnp.where(seen, rows * params["scale"], 0.0).sum(0)


CASES = {
    "last layer": (layers, {"w3": FROZEN["w3"]}),
    "a bias in the middle": (layers, {"b2": normal(4, WIDTH)}),
    "an additive low rank": (layers, {"low": 0.1 * normal(5, WIDTH, WIDTH)}),
    "the first layer's bias": (layers, {"b1": normal(6, WIDTH)}),
    "the first layer": (layers, {"w1": FROZEN["w1"]}),
    "all": (layers, FROZEN),
    "tied": (tied, {"w": FROZEN["w1"]}),
    "masked": (masked, {"scale": normal(7, WIDTH)}),
}
WITHOUT_TRUNK = {"the first layer", "all", "tied"}
INPUTS = jax.random.normal(jax.random.key(0), (70, 8))


def bound(name):
    function, params = CASES[name]
    return jax.tree_util.Partial(function, FROZEN), params


@pytest.mark.parametrize("name", CASES)
def test_head_after_trunk_is_the_model(name):
    model, params = bound(name)
    trunk, head = split(model, params, example_shapes(INPUTS))
    assert (trunk is None) == (name in WITHOUT_TRUNK)
    got = jax.vmap(lambda f: head(f, params))(features(trunk, INPUTS))
    np.testing.assert_allclose(got, jax.vmap(lambda x: model(x, params))(INPUTS), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_gradients_through_the_head_are_the_models(name):
    model, params = bound(name)
    trunk, head = split(model, params, example_shapes(INPUTS))
    x = INPUTS[3]
    got = jax.jacrev(lambda p: head(x if trunk is None else trunk(x), p))(params)
    wanted = jax.jacrev(lambda p: model(x, p))(params)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), got, wanted)


@pytest.mark.parametrize("case", [mlp(), cnn()], ids=lambda case: case.name)
def test_model_that_is_covered_from_its_first_layer_has_no_trunk(case):
    assert split(case.model_fn, case.params, example_shapes(case.inputs)) == (None, case.model_fn)


def test_trunk_hands_over_the_smallest_values():
    trunk, _ = split(*bound("masked"), example_shapes(INPUTS))
    shapes = jax.eval_shape(trunk, INPUTS[0])
    assert get_bytes(shapes) <= 4 * (4 * WIDTH + 8)  # the rows, and tokens or inputs for the mask


def test_features_of_a_last_layer_are_what_it_multiplies():
    trunk, _ = split(*bound("last layer"), example_shapes(INPUTS))
    assert [leaf.shape for leaf in jax.eval_shape(trunk, INPUTS[0])] == [(WIDTH,)]


def test_weights_of_the_trunk_are_not_in_the_head():
    _, head = split(*bound("last layer"), example_shapes(INPUTS))
    assert get_bytes(head.bound) == 0


@pytest.mark.parametrize("count", [0, 1, 5, 32, 70])
def test_features_have_the_batch_size_of_the_inputs(count):
    trunk, _ = split(*bound("last layer"), example_shapes(INPUTS))
    (got,) = features(trunk, INPUTS[:count])
    assert got.shape == (count, WIDTH)
    np.testing.assert_allclose(got, features(trunk, INPUTS)[0][:count], rtol=1e-4, atol=1e-6)


def test_equal_shapes_share_programs_and_other_weights_give_other_features():
    model, params = bound("last layer")
    other = jax.tree.map(lambda leaf: 2 * leaf, model)
    first, second = (split(m, params, example_shapes(INPUTS)) for m in (model, other))
    assert first.trunk.program is second.trunk.program and first.head.program is second.head.program
    assert not np.allclose(features(first.trunk, INPUTS)[0], features(second.trunk, INPUTS)[0])


def test_models_inputs_may_be_a_tree():
    def model(x, params):
        return jnp.tanh(x["a"] @ FROZEN["w1"]) @ params + x["b"].sum()

    inputs = {"a": INPUTS, "b": INPUTS[:, :2]}
    trunk, head = split(model, FROZEN["w3"], example_shapes(inputs))
    got = jax.vmap(lambda f: head(f, FROZEN["w3"]))(features(trunk, inputs))
    np.testing.assert_allclose(got, jax.vmap(lambda x: model(x, FROZEN["w3"]))(inputs), rtol=1e-5, atol=1e-6)
