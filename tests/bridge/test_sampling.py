"""Samples drawn by torch's generators."""

import jax
import pytest
import torch
from torch import nn

from bridge.precision import in_float32
from bridge.sampling import gaussian_samples, key_of
from tests.bridge.dense import fit


def test_a_key_is_a_function_of_the_generator_and_moves_it_on():
    one, two = (torch.Generator().manual_seed(3) for _ in range(2))
    first = key_of(one)
    assert (jax.random.key_data(first) == jax.random.key_data(key_of(two))).all()
    assert not (jax.random.key_data(first) == jax.random.key_data(key_of(one))).all()
    torch.manual_seed(3)
    mine = key_of(None)
    torch.manual_seed(3)
    assert (jax.random.key_data(mine) == jax.random.key_data(key_of(None))).all()


@pytest.mark.parametrize("rank", [1, 2, 4], ids="rank {}".format)
def test_samples_have_mean_and_covariance_also_where_that_is_singular(rank):
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(3, 4, rank, generator=generator, dtype=torch.float64)
    mean, covariance = torch.randn(3, 2, 2, generator=generator, dtype=torch.float64), root @ root.mT
    drawn = gaussian_samples(mean, covariance, 30_000, generator)
    assert drawn.shape == (30_000, 3, 2, 2)
    centred = (drawn - mean).reshape(-1, 3, 4)
    found = torch.einsum("sbi,sbj->bij", centred, centred) / len(centred)
    assert (found - covariance).abs().max() < 0.05 * covariance.abs().max()
    assert centred.mean(0).abs().max() < 0.05 * covariance.abs().max() ** 0.5


def test_without_any_variance_samples_are_the_mean():
    mean = torch.randn(2, 3)
    assert torch.equal(gaussian_samples(mean, torch.zeros(2, 3, 3), 4, None), mean.expand(4, 2, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_models_in_sixteen_bits_are_sampled_in_float32(dtype):
    torch.manual_seed(0)
    model, x = nn.Linear(3, 4).to(dtype), torch.randn(14, 3).to(dtype)
    y = torch.arange(14) % 4
    short, wide = fit(model, x, y), fit(in_float32(model), in_float32(x), y)
    for call in ("predictive_samples", "functional_samples", "uncertainty"):
        found, wanted = (
            getattr(la, call)(given, n_samples=50, generator=torch.Generator().manual_seed(0))
            for la, given in ((short, x), (wide, in_float32(x)))
        )
        pairs = [(found, wanted)] if isinstance(found, torch.Tensor) else [(found[k], wanted[k]) for k in wanted]
        for ours, theirs in pairs:
            assert ours.dtype is dtype
            torch.testing.assert_close(ours, theirs.to(dtype), rtol=1e-2, atol=1e-3)
