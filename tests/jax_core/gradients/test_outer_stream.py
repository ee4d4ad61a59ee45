"""The GGN of dense layers from weighted products of their vectors is the GGN of all rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_core.data.passes import LoaderPasses
from jax_core.gradients.jacobians import find_layout
from jax_core.gradients.outer_stream import OuterStream, is_outer
from jax_core.gradients.row_stream import RowStream
from jax_core.likelihoods import Bernoulli, Categorical, Gaussian
from jax_core.xla.compiled import as_jit_argument

pytestmark = pytest.mark.in_turns

WIDTH, CLASSES, SAMPLES = 1400, 3, 21


def normal(key, *shape):
    return jax.random.normal(jax.random.key(key), shape) / shape[0] ** 0.5


def linear(x, params):
    return params["w"] @ x + params["b"]


def without_bias(x, params):
    return params["w"] @ jnp.tanh(x)


def two_heads(x, params):
    return jnp.tanh(params["w"] @ x) + params["other"]["a"] @ jnp.cos(x) * params["b"]


def with_a_number(x, params):
    return params["w"] @ x * params["a"] + params["b"]


W, B = normal(1, CLASSES, WIDTH), normal(2, CLASSES)
MODELS = {
    "linear": (linear, {"w": W, "b": B}),
    "without bias": (without_bias, {"w": W}),
    "two heads": (two_heads, {"b": B, "other": {"a": normal(3, CLASSES, WIDTH)}, "w": W}),
    "a number first": (with_a_number, {"a": jnp.array(1.3), "b": B, "w": W}),
}
X = jax.random.normal(jax.random.key(0), (SAMPLES, WIDTH)) / WIDTH**0.5
LOSSES = {
    "classes": (Categorical(), jnp.arange(SAMPLES) % CLASSES),
    "labels": (Bernoulli(), (jnp.arange(SAMPLES * CLASSES).reshape(SAMPLES, CLASSES) % 2).astype(jnp.float32)),
    "numbers": (Gaussian(), X[:, :CLASSES]),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", MODELS)
def test_matrix_is_that_of_the_rows(name, loss):
    (model, params), (likelihood, target) = MODELS[name], LOSSES[loss]
    loader = [(X[i : i + 8], target[i : i + 8]) for i in range(0, SAMPLES, 8)]
    model = as_jit_argument(model)
    layout = find_layout(model, params, jax.ShapeDtypeStruct((WIDTH,), X.dtype))
    assert is_outer(layout, CLASSES)
    stream = OuterStream(model, params, likelihood, LoaderPasses(loader))
    rows = RowStream(model, params, likelihood, LoaderPasses(loader), tolerance=0.0).matrix(2**30)
    np.testing.assert_allclose(stream.matrix(layout), rows.T @ rows, rtol=1e-4, atol=1e-5)
    assert stream.sums.samples == SAMPLES


def test_layer_with_more_cotangents_than_outputs_goes_by_rows():
    def deep(x, params):
        return W[:, :64] @ jnp.tanh(params @ x)

    layout = find_layout(deep, normal(4, 64, WIDTH), jax.ShapeDtypeStruct((WIDTH,), X.dtype))
    assert layout.factored and not is_outer(layout, CLASSES)
