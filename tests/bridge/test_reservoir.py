"""A reservoir holds some of the samples that were added, each as likely and none twice."""

import numpy as np
import pytest

from bridge import reservoir
from bridge.reservoir import Reservoir
from jax_core.data.batches import Batch


def filled(sizes, most, seed=0):
    """Samples numbered through, their targets ten times that."""
    kept, start = Reservoir(seed, most), 0
    for size in sizes:
        numbers = np.arange(start, start + size)
        kept.add(Batch({"x": np.repeat(numbers[:, None], 3, 1), "n": numbers}, 10 * numbers))
        start += size
    return kept.batches()


def numbers(batches):
    return np.concatenate([batch.input["n"] for batch in batches])


@pytest.mark.parametrize("sizes", [[5, 5, 3], [13], [1] * 13, [0, 13]])
def test_what_fits_is_kept_in_order(sizes):
    batches = filled(sizes, most=20)
    assert numbers(batches).tolist() == list(range(13))


@pytest.mark.parametrize("sizes", [[7] * 40, [300], [1, 299], [16, 0, 284]])
def test_none_is_kept_twice_and_leaves_stay_together(sizes):
    batches = filled(sizes, most=50)
    found = numbers(batches)
    assert len(found) == len(set(found.tolist())) == 50
    for batch in batches:
        assert (batch.input["x"] == batch.input["n"][:, None]).all() and (batch.target == 10 * batch.input["n"]).all()


def test_each_sample_is_as_likely():
    counts = np.zeros(60)
    for seed in range(2000):
        counts[numbers(filled([7] * 8 + [4], most=12, seed=seed))] += 1
    expected = 2000 * 12 / 60
    assert np.abs(counts - expected).max() < 4.5 * np.sqrt(expected * (1 - 12 / 60))


def test_the_same_seed_keeps_the_same():
    assert (numbers(filled([9] * 30, 50, seed=3)) == numbers(filled([9] * 30, 50, seed=3))).all()


def test_large_samples_are_kept_in_less_memory(monkeypatch):
    monkeypatch.setattr(reservoir, "_BYTES", 400)  # 32 bytes of inputs and 8 of a target each
    assert len(numbers(filled([9] * 30, 50))) == 400 // 40


def test_batches_are_of_one_size_but_the_last():
    assert [len(batch.target) for batch in filled([100] * 4, most=300)] == [128, 128, 44]


def test_nothing_is_kept_of_nothing():
    assert filled([0, 0], most=5) == ()
