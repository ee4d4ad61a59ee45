"""Rewritten convolutions and window sums are the user's own function, with its derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax import lax

from jax_core.xla import convolutions
from jax_core.xla.convolutions import Rewritten, with_fast_convolutions


def primitives_of(model, x, params):
    return {equation.primitive.name for equation in jax.make_jaxpr(model)(x, params).jaxpr.eqns}


def assert_same_function(model, x, params):
    """Value, jvp and vjp, in float64."""
    rewritten = with_fast_convolutions(model)
    assert isinstance(rewritten, Rewritten)
    tangents = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape), params)

    def all_of(function):
        out, pushed = jax.jvp(lambda p: function(x, p), (params,), (tangents,))
        return out, pushed, jax.vjp(lambda p: function(x, p), params)[1](jnp.sin(out))[0]

    found, wanted = jax.jit(lambda: all_of(rewritten))(), jax.jit(lambda: all_of(model))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), found, wanted)


SPECS = {1: ("NCH", "OIH", "NHC"), 2: ("NHWC", "HWIO", "NCHW"), 3: ("NCDHW", "OIDHW", "NDHWC")}


@given(
    rank=st.integers(1, 3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    low=st.integers(-1, 2),
    high=st.integers(0, 2),
    layouts=st.permutations(range(3)),
)
@settings(max_examples=15, deadline=None)
def test_convolutions_keep_value_and_derivatives(rank, kernel, stride, dilation, low, high, layouts):
    with jax.enable_x64(True):
        sizes = (7, 6, 5)[:rank]
        lhs, rhs, out = SPECS[rank]
        lhs, out = (lhs, out) if layouts[0] else (out, lhs)
        space = lhs.replace("N", "").replace("C", "")
        shape = [{"N": 2, "C": 3}.get(letter) or sizes[space.index(letter)] for letter in lhs]
        weights = [{"O": 4, "I": 3}.get(letter) or kernel for letter in rhs]
        x = jax.random.normal(jax.random.key(0), shape)
        params = {"kernel": jax.random.normal(jax.random.key(1), weights)}

        def model(x, p):
            return lax.conv_general_dilated(
                x, p["kernel"], (stride,) * rank, [(low, high)] * rank, None, (dilation,) * rank, (lhs, rhs, out)
            )

        assume(min(sizes) + low + high > dilation * (kernel - 1))
        assert "conv_general_dilated" not in primitives_of(with_fast_convolutions(model), x, params)
        assert_same_function(model, x, params)


@given(
    window=st.integers(1, 3),
    stride=st.integers(1, 3),
    padding=st.sampled_from(["VALID", "SAME", ((0, 0), (1, 2), (0, 1), (0, 0))]),
    dilation=st.integers(1, 2),
)
@settings(max_examples=10, deadline=None)
def test_window_sums_keep_value_and_derivatives(window, stride, padding, dilation):
    with jax.enable_x64(True):
        x = jnp.ones((2, 7, 6, 3))
        params = {"scale": jax.random.normal(jax.random.key(1), (2, 7, 6, 3))}

        def model(x, p):
            shape, steps, holes = (1, window, window, 1), (1, stride, stride, 1), (1, dilation, dilation, 1)
            return lax.reduce_window(x * p["scale"], 0.0, lax.add, shape, steps, padding, window_dilation=holes)

        assert "reduce_window_sum" not in primitives_of(with_fast_convolutions(model), x, params)
        assert_same_function(model, x, params)


@pytest.mark.parametrize(
    "options",
    [
        {"feature_group_count": 3},
        {"batch_group_count": 2},
        {"lhs_dilation": (2, 2)},
    ],
)
def test_other_convolutions_stay_as_they_are(x64, options):
    into = 1 if "feature_group_count" in options else 3
    x, params = jnp.ones((2, 3, 6, 6)), jax.random.normal(jax.random.key(0), (6, into, 2, 2))

    def model(x, p):
        return lax.conv_general_dilated(x, p, (1, 1), [(0, 0)] * 2, **options)

    assert "conv_general_dilated" in primitives_of(with_fast_convolutions(model), x, params)
    assert_same_function(model, x, params)


def test_large_images_keep_the_backends_convolution(monkeypatch):
    def model(x, p):
        return lax.conv_general_dilated(x, p, (1, 1), "VALID")

    x, params = jnp.ones((1, 3, 10, 10)), jnp.ones((4, 3, 3, 3))
    monkeypatch.setattr(convolutions, "UNFOLDED", 8 * 8 * 27 - 1)
    assert "conv_general_dilated" in primitives_of(with_fast_convolutions(model), x, params)
    monkeypatch.setattr(convolutions, "UNFOLDED", 8 * 8 * 27)
    assert "conv_general_dilated" not in primitives_of(with_fast_convolutions(model), x, params)


@pytest.mark.mixed_dtypes  # flax averages by counts
def test_flax_models_are_rewritten_whole(x64):
    class CNN(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs, param_dtype=jnp.float64)
            self.head = nnx.Linear(36, 3, rngs=rngs, param_dtype=jnp.float64)

        def __call__(self, x):
            pooled = nnx.avg_pool(nnx.relu(self.conv(x)), (2, 2), strides=(2, 2))
            return self.head(nnx.max_pool(pooled, (2, 2)).reshape(-1)[:36])

    graph, params = nnx.split(CNN(nnx.Rngs(0)))

    def model(x, p):
        return nnx.call((graph, p))(x)[0]

    x = jax.random.normal(jax.random.key(0), (8, 8, 1))
    left = primitives_of(with_fast_convolutions(model), x, params)
    assert not left & {"conv_general_dilated", "reduce_window_sum"}
    assert_same_function(model, x, params)


def test_other_backends_and_models_that_chose_for_themselves_are_left_alone(monkeypatch):
    class Chosen:
        chosen_lowerings = True

        def __call__(self, x, params):
            return x

    chosen = Chosen()
    assert with_fast_convolutions(chosen) is chosen
    once = with_fast_convolutions(len)
    assert with_fast_convolutions(once) is once
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert with_fast_convolutions(len) is len
