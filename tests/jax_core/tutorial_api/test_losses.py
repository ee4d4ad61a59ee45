"""Derivatives of named losses, against automatic differentiation and laplax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laplax.curv.full import full_prec_to_scale as laplax_scale
from laplax.curv.ggn import create_ggn_mv as laplax_ggn_mv
from laplax.curv.ggn import create_loss_hessian_mv as laplax_hessian_mv

from jax_core.tutorial_api import (
    create_ggn_mv,
    create_loss_gradient,
    create_loss_hessian_mv,
    full_prec_to_scale,
)

PRED, VECTOR = jnp.array([0.3, -1.2, 2.0]), jnp.array([1.0, 0.5, -0.7])
LOSSES = {
    "cross_entropy": (jnp.asarray(1), lambda f, y: -jax.nn.log_softmax(f)[y]),
    "mse": (jnp.array([1.0, 0.0, -2.0]), lambda f, y: 0.5 * jnp.sum((f - y) ** 2)),
    "binary_cross_entropy": (
        jnp.array([1.0, 0.0, 1.0]),
        lambda f, y: -jnp.sum(y * jax.nn.log_sigmoid(f) + (1 - y) * jax.nn.log_sigmoid(-f)),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_derivatives_of_a_named_loss_are_those_of_its_formula(name):
    target, loss = LOSSES[name]
    for given in (name, loss):
        np.testing.assert_allclose(create_loss_gradient(given)(PRED, target), jax.grad(loss)(PRED, target), atol=1e-6)
        found = create_loss_hessian_mv(given)(VECTOR, PRED, target)
        np.testing.assert_allclose(found, jax.hessian(loss)(PRED, target) @ VECTOR, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_the_hessian_of_a_named_loss_needs_no_target(name):
    target, loss = LOSSES[name]
    with_target = create_loss_hessian_mv(name)(VECTOR, PRED, target)
    np.testing.assert_array_equal(create_loss_hessian_mv(name)(VECTOR, pred=PRED), with_target)
    with pytest.raises(TypeError, match="give target="):
        create_loss_hessian_mv(loss)(VECTOR, PRED)


@pytest.mark.parametrize("name", LOSSES)
def test_hessian_product_is_laplaxs_but_for_the_half_of_mse(name):
    target, _ = LOSSES[name]
    found = create_loss_hessian_mv(name)(VECTOR, PRED, target)
    expected = laplax_hessian_mv(name)(VECTOR, pred=PRED, target=target)
    np.testing.assert_allclose((2.0 if name == "mse" else 1.0) * found, expected, atol=1e-6)


def test_laplaxs_mse_is_had_by_its_formula():
    params = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}
    data = {"input": jnp.arange(8.0).reshape(4, 2) / 8, "target": jnp.ones((4, 3))}

    def model_fn(input, params):
        return input @ params["w"] + params["b"]

    mine = create_ggn_mv(model_fn, params, data, lambda output, target: jnp.sum((output - target) ** 2))(params)
    halved = create_ggn_mv(model_fn, params, data, "mse")(params)
    theirs = laplax_ggn_mv(model_fn, params, data, "mse")(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), mine, theirs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(2 * a, b, rtol=1e-5), halved, theirs)


def test_scale_of_a_precision_is_the_lower_root_of_its_inverse_and_laplaxs(x64):
    root = jax.random.normal(jax.random.key(0), (6, 6))
    precision = root @ root.T + jnp.eye(6)
    scale = full_prec_to_scale(precision)
    np.testing.assert_allclose(scale @ scale.T, jnp.linalg.inv(precision), atol=1e-12)
    np.testing.assert_array_equal(scale, jnp.tril(scale))
    np.testing.assert_allclose(scale, laplax_scale(precision), atol=1e-12)
