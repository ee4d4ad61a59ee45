"""Laws of the sizes: what bounds a chunk, and when a bound gives way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.tree_util import Partial

from jax_core.data.batches import Batch
from jax_core.xla.chunks import ForwardCost, chunk_size, forward_cost, group_size, sum_over_chunks

CLIFF = 32 * 2**20
BYTES = st.integers(1, 2**36)


@given(st.integers(1, 2**22), st.integers(1, 16))
def test_chunks_of_small_samples_stay_below_the_cliff(each, width):
    chunk = chunk_size(ForwardCost(each, 0, False), width=width)
    assert chunk * each * width <= CLIFF or chunk == 1 or each * width > CLIFF * 3 / 4


@given(BYTES, BYTES, st.integers(1, 16))
def test_more_parameters_never_ask_for_smaller_chunks(each, params, width):
    few, many = (chunk_size(ForwardCost(each, p, False), width=width) for p in (0, params))
    assert 1 <= few <= many
    assert many & (many - 1) == 0


def test_samples_past_the_cliff_share_a_chunk():
    """ResNet-18 at 64 x 64: 110 MB a sample; one by one every sample would read all weights."""
    assert chunk_size(ForwardCost(110 * 10**6, 45 * 10**6, False)) >= 32


@given(BYTES)
def test_vectors_share_a_call_while_a_sample_stays_below_the_cliff(each):
    group = group_size(ForwardCost(each, 0, False))
    assert 1 <= group <= 8
    assert group == 1 or group * each <= CLIFF


def test_what_a_model_binds_may_be_shapes_alone():
    model = Partial(lambda scale, x, w: scale * (w @ x), jnp.ones(3))
    size = forward_cost(model, jax.ShapeDtypeStruct((3, 4), jnp.float32), jax.ShapeDtypeStruct((4,), jnp.float32))
    assert (size.bytes, size.params, size.convolves) == (24, 48, False)


@pytest.mark.parametrize("budget", [40, 1000, 10**9])
def test_sum_does_not_depend_on_the_chunks(budget, monkeypatch):
    monkeypatch.setattr("jax_core.xla.chunks._TEMPORARIES", budget)
    monkeypatch.setattr("jax_core.xla.chunks._PAST_THE_CLIFF", 2 * budget)
    inputs = jnp.arange(44.0).reshape(11, 4)
    batch = Batch(inputs, jnp.arange(11.0))
    found = sum_over_chunks(
        lambda part: (part.input.sum(0), part.target.sum()), batch, model_fn=lambda x, p: p * x, params=jnp.ones(())
    )
    np.testing.assert_array_equal(found[0], inputs.sum(0))
    assert found[1] == 55
