"""Batches: pieces, prefetching, fingerprints."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_core.data.batches import Batch, KnownSizes, evenly, fingerprint, pieces, prefetched


@given(total=st.integers(1, 30), size=st.integers(1, 12))
@settings(max_examples=12)
def test_pieces_joined_are_the_batch(total, size):
    batch = Batch({"a": jnp.arange(total * 2).reshape(total, 2)}, jnp.arange(total))
    found = list(pieces(batch, size))
    assert all(piece.target.shape[0] <= size for piece in found)
    joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *found)
    np.testing.assert_array_equal(joined.input["a"], batch.input["a"])
    np.testing.assert_array_equal(joined.target, batch.target)


@given(total=st.integers(1, 1000), most=st.integers(1, 300))
def test_even_pieces_are_as_few_as_may_be_and_waste_less_than_one_sample_each(total, most):
    size = evenly(total, most)
    count = -(-total // size)
    assert size <= most
    assert count == -(-total // most)
    assert count * size - total < count


@given(st.lists(st.integers(1, 20), max_size=40))
def test_a_batch_is_padded_once_for_each_odd_size_and_never_cut(sizes):
    known, compiled, padded = KnownSizes(), set(), []
    for size in sizes:
        fit = known.fit(size)
        assert fit >= size
        if fit > size:
            assert fit in compiled
            padded.append(size)
        compiled.add(fit)
    assert len(padded) == len(set(padded))


def test_a_ragged_last_batch_needs_no_program():
    known = KnownSizes()
    assert [known.fit(size) for size in (128, 128, 32)] == [128, 128, 128]


def test_prefetching_keeps_order_and_works_ahead():
    made, ahead = [], threading.Event()

    def items():
        for i in range(5):
            made.append(i)
            if i == 1:
                ahead.set()
            yield i

    stream = prefetched(items())
    assert next(stream) == 0
    assert ahead.wait(timeout=10), "the second item is made before it is asked for"
    assert list(stream) == [1, 2, 3, 4]


def test_prefetching_passes_errors_on_and_stops_when_dropped():
    def broken():
        yield 1
        raise KeyError("second")

    stream = prefetched(broken())
    assert next(stream) == 1
    with pytest.raises(KeyError, match="second"):
        next(stream)
    endless = prefetched(iter(int, 1))
    next(endless)
    endless.close()
    assert not any(thread.name.startswith("prefetch") for thread in threading.enumerate())


def test_prefetching_keeps_the_float_type(x64):
    made = list(prefetched(jnp.asarray(np.ones(2)) for _ in range(2)))
    assert all(array.dtype == jnp.float64 for array in made)


@given(order=st.permutations(range(6)), cut=st.integers(0, 6), changed=st.integers(0, 5))
def test_fingerprints_see_samples_and_not_their_order(order, cut, changed):
    x, y = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32), np.arange(6)

    def total(rows):
        parts = [fingerprint((x[r], y[r])) for r in (rows[:cut], rows[cut:]) if len(r)]
        return sum(p[0] for p in parts), sum(p[1] for p in parts) % 2**64

    assert total(list(order)) == total(list(range(6)))
    other = y.copy()
    other[changed] += 1
    assert fingerprint((x, other))[1] != fingerprint((x, y))[1]
