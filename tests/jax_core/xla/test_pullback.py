"""Pull-backs of compiled functions, against ``jax.grad``."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jax_core.xla import pullback
from jax_core.xla.pullback import with_pullback

X = np.arange(6.0).reshape(2, 3) / 5


def layer(weight, inputs):
    return {"y": jnp.sin(inputs["x"] @ weight), "sum": inputs["x"].sum() * inputs["scale"]}


def test_a_pull_back_is_the_gradient_of_the_inner_product(x64):
    weight, inputs = jnp.linspace(-1, 1, 12).reshape(3, 4), {"x": jnp.asarray(X), "scale": jnp.array(3)}
    outputs, pull = with_pullback(Partial(layer, weight), inputs)
    cotangents = {"y": jnp.cos(outputs["y"]), "sum": jnp.array(2.0)}

    def inner(x):
        found = layer(weight, {**inputs, "x": x})
        return sum((found[name] * cotangents[name]).sum() for name in found)

    (slope,) = pull(cotangents)  # an integer has none
    np.testing.assert_allclose(slope, jax.grad(inner)(jnp.asarray(X)), rtol=1e-12)
    np.testing.assert_allclose(outputs["y"], layer(weight, inputs)["y"], rtol=1e-12)


def test_another_function_of_the_same_structure_is_no_other_program():
    inputs = {"x": jnp.asarray(X), "scale": jnp.array(3)}
    with_pullback(Partial(layer, jnp.ones((3, 5))), inputs)[1]({"y": jnp.ones((2, 5)), "sum": jnp.array(0.0)})
    known = pullback._forward._cache_size(), pullback._pulled._cache_size()
    _, pull = with_pullback(Partial(layer, 2 * jnp.ones((3, 5))), inputs)
    (slope,) = pull({"y": jnp.ones((2, 5)), "sum": jnp.array(0.0)})
    np.testing.assert_allclose(slope, 2 * np.cos(2 * X.sum(1, keepdims=True)).repeat(3, 1) * 5, rtol=1e-5)
    assert (pullback._forward._cache_size(), pullback._pulled._cache_size()) == known


def test_residuals_that_are_arguments_are_not_copied():
    weight = jnp.ones((3, 7))
    _, residuals = pullback._forward(Partial(layer, weight), {"x": jnp.asarray(X), "scale": jnp.array(3)})
    assert all(leaf.shape != weight.shape for leaf in residuals.computed)
