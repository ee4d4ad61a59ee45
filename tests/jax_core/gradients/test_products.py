"""Jacobians in factors equal those written out, wherever a network multiplies by a parameter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_core.gradients.jacobians import factored_jacobian, find_layout, jacobian
from jax_core.gradients.products import run_watched


def normal(key, *shape):
    return jax.random.normal(jax.random.key(key), shape)


def dense(x, p):
    return jnp.tanh(p["w"] @ x) @ normal(9, 3, 2)


def scaled(x, p):  # as a normalisation that is folded into the weights before it
    return jnp.tanh((p["w"] * (p["gain"] * 0.7)[:, None]) @ x) @ normal(9, 3, 2)


def twice_scaled(x, p):
    return jnp.tanh(2.0 * (p["w"] * p["gain"][:, None]) @ x) @ normal(9, 3, 2)


def heads(x, p):  # two axes of outputs
    return jnp.einsum("hdi,i->hd", p["w"], x).reshape(-1)[:3]


def convolved(x, p):  # by XLA's own primitive, in torch's order of axes
    maps = jax.lax.conv_general_dilated(
        x[None], p["w"], (2, 1), ((1, 0), (0, 1)), rhs_dilation=(1, 2), dimension_numbers=("NCHW", "OIHW", "NCHW")
    )
    return jnp.tanh(maps).sum((2, 3))[0]


CASES = {
    "dense": (dense, {"w": normal(0, 3, 4)}, (4,)),
    "scaled": (scaled, {"w": normal(0, 3, 4), "gain": normal(1, 3)}, (4,)),
    "twice scaled": (twice_scaled, {"w": normal(0, 3, 4), "gain": normal(1, 3)}, (4,)),
    "heads": (heads, {"w": normal(0, 2, 3, 4)}, (4,)),
    "convolved": (convolved, {"w": normal(0, 3, 2, 2, 3)}, (2, 6, 7)),
}


@pytest.mark.parametrize("case", CASES)
def test_factors_multiply_out_to_the_jacobian(x64, case):
    model, params, shape = CASES[case]
    params = jax.tree.map(lambda leaf: leaf.astype(float), params)
    inputs = normal(5, 3, *shape)
    layout = find_layout(model, params, inputs[0], lambda leaf, sides: True)
    assert len(layout.factored) == 1
    outputs, rows = factored_jacobian(model, params, inputs, layout)
    expected = [jacobian(model, params, x) for x in inputs]
    np.testing.assert_allclose(outputs, [output for output, _ in expected], atol=1e-12)
    np.testing.assert_allclose(rows.dense(), [written for _, written in expected], atol=1e-11)


@pytest.mark.parametrize(
    "model",
    [
        lambda x, p: (p["w"] * jnp.arange(4.0)) @ x,  # a scale of what is summed over
        lambda x, p: (p["w"] * p["w"]) @ x,
        lambda x, p: p["w"][:, ::-1] @ x,
        lambda x, p: p["w"] @ x + p["w"].sum(),
    ],
)
def test_anything_else_that_happens_to_a_matrix_leaves_it_written_out(model):
    assert not find_layout(model, {"w": normal(0, 3, 4)}, jnp.ones(4), lambda leaf, sides: True).factored


def test_a_vector_added_to_a_product_is_known_as_its_bias():
    def model(x, p):
        hidden = p["w"] @ x + p["b"]
        return (hidden.reshape(1, 3) + p["later"]).reshape(-1) * p["gain"] + p["last"].sum()

    params = {"w": normal(0, 3, 4), **{name: jnp.ones(3) for name in ("b", "later", "gain", "last")}}
    names, found = sorted(params), []
    leaf = names.index("w")
    run_watched(model, params, jnp.ones(4), {leaf}, lambda product: product.result, lambda b, w: found.append((b, w)))
    assert [(names[b], names[w]) for b, w in found] == [("b", "w")]
