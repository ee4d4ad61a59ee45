"""Calibration errors against torchmetrics, laplax and plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_calibration_error

from jax_core.evaluation import (
    adaptive_calibration_error,
    bin_metrics,
    expected_calibration_error,
    maximum_calibration_error,
)

ERRORS = (expected_calibration_error, maximum_calibration_error, adaptive_calibration_error)


def draw(seed, size=301):
    rng = np.random.default_rng(seed)
    confidence = rng.beta(4, 1, size).astype(np.float32)
    return confidence, rng.random(size) < confidence**2


def torchmetrics_error(confidence, hits, num_bins, norm):
    # binary_calibration_error bins the probability of class 1 against the target: what we call confidence and hits
    return float(binary_calibration_error(torch.from_numpy(confidence), torch.from_numpy(hits).int(), num_bins, norm))


# few shapes, as each compiles anew
bins, sizes = st.sampled_from([1, 2, 15, 40]), st.sampled_from([1, 13, 120, 400])


@given(st.integers(0, 2**16), bins, sizes)
def test_expected_and_maximum_error_equal_torchmetrics(seed, num_bins, size):
    confidence, hits = draw(seed, size)
    for ours, norm in ((expected_calibration_error, "l1"), (maximum_calibration_error, "max")):
        mine = ours(jnp.asarray(confidence), jnp.asarray(hits), num_bins)
        np.testing.assert_allclose(mine, torchmetrics_error(confidence, hits, num_bins, norm), atol=2e-6)


@given(st.integers(0, 2**16), bins)
def test_bins_equal_laplax(seed, num_bins):
    from laplax.eval.metrics import calculate_bin_metrics as laplax_bins

    confidence, hits = map(jnp.asarray, draw(seed))
    mine = bin_metrics(confidence, hits, num_bins)
    theirs = laplax_bins(confidence, hits.astype(jnp.float32), num_bins)
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@given(st.integers(0, 2**16), st.sampled_from([(1, 13), (15, 120), (40, 400), (40, 40)]))
def test_adaptive_error_is_the_error_over_equal_slices_of_the_sorted_samples(seed, shape):
    num_bins, size = shape
    confidence, hits = draw(seed, size)
    slices = np.split(np.argsort(confidence, kind="stable"), num_bins)
    expected = np.mean([abs(hits[s].mean() - confidence[s].astype(float).mean()) for s in slices])
    mine = adaptive_calibration_error(jnp.asarray(confidence), jnp.asarray(hits), num_bins)
    np.testing.assert_allclose(mine, expected, atol=2e-6)


@given(st.integers(1, 50), st.integers(1, 20))
def test_adaptive_bins_differ_in_size_by_at_most_one(size, num_bins):
    from jax_core.evaluation.calibration import quantile_index

    counts = np.bincount(quantile_index(size, num_bins), minlength=num_bins)
    assert counts.sum() == size and counts.max() - counts.min() <= 1


def test_perfect_calibration_has_no_error():
    confidence = jnp.repeat(jnp.asarray([0.25, 0.75]), 4)
    hits = jnp.asarray([1, 0, 0, 0, 1, 1, 1, 0])
    assert all(error(confidence, hits, num_bins=2) == 0 for error in ERRORS)


def test_certain_and_wrong_is_an_error_of_one():
    assert all(error(jnp.ones(5), jnp.zeros(5), num_bins=15) == 1 for error in ERRORS)


def test_proportions_sum_to_one_and_edges_belong_to_the_upper_bin():
    bins = bin_metrics(jnp.asarray([0.0, 0.5, 1.0]), jnp.ones(3), num_bins=2)
    np.testing.assert_allclose(bins.proportions, [1 / 3, 2 / 3])
    np.testing.assert_allclose(bins.confidences, [0.0, 0.75])


def test_sum_over_many_samples_keeps_float32_precision():
    confidence = jnp.full(200_000, 0.9876543)
    bins = bin_metrics(confidence, jnp.ones(200_000), num_bins=15)
    np.testing.assert_allclose(bins.confidences[-1], 0.9876543, rtol=1e-6)


@pytest.mark.parametrize("error", ERRORS)
def test_errors_compile(error):
    confidence, hits = map(jnp.asarray, draw(0))
    compiled = jax.jit(lambda c, h: error(c, h, num_bins=15))(confidence, hits)
    np.testing.assert_allclose(compiled, error(confidence, hits, num_bins=15), rtol=1e-6)


@pytest.mark.parametrize("error", [*ERRORS, bin_metrics])
@pytest.mark.usefixtures("unchecked_annotations")
def test_what_cannot_be_binned_is_refused(error):
    with pytest.raises(ValueError, match=r"\(3,\).*\(4,\)"):
        error(jnp.ones(3), jnp.ones(4), num_bins=15)
    with pytest.raises(ValueError, match="at least one sample"):
        error(jnp.ones(0), jnp.ones(0), num_bins=15)
    with pytest.raises(ValueError, match="num_bins=0"):
        error(jnp.ones(3), jnp.ones(3), num_bins=0)
