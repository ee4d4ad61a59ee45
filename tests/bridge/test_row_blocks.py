"""A depthwise network, whose kernel has an exact block for each channel, through all that a posterior does."""

import functools

import jax
import pytest
import torch
from torch import nn

import bridge
from bridge import Laplace
from tests.bridge import dense

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.in_turns]
STRUCTURES = ("kron", "ekfac", "kron_lowrank")
CHANNELS = 116  # whose kernel of 3 x 3 is too large for one block
KERNEL = slice(3 * CHANNELS, 12 * CHANNELS)  # after a matrix of two inputs, and its bias


def network():
    torch.manual_seed(0)
    depthwise = nn.Conv2d(CHANNELS, CHANNELS, 3, groups=CHANNELS, bias=False)
    first, last = nn.Conv2d(2, CHANNELS, 1), nn.Linear(CHANNELS, 2)
    return nn.Sequential(first, nn.Tanh(), depthwise, nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), last).double()


def data(count=12):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 2, 4, 4, generator=generator, dtype=torch.float64), torch.arange(count) % 2


def fitted(structure, part=slice(None)):
    x, y = data()
    return dense.fit(network(), x[part], y[part], structure=structure, rank=3)


@functools.cache
def channels():
    """The kernel's block of the GGN, what lies between channels left out."""
    x, y = data()
    whole = dense.ggn(network(), x, lambda z, i: nn.functional.cross_entropy(z, y[i : i + 1], reduction="sum"))
    return whole[KERNEL, KERNEL] * torch.block_diag(*[torch.ones(9, 9, dtype=torch.float64)] * CHANNELS)


def kernel_of(la):
    return la.posterior_precision.to_matrix()[KERNEL, KERNEL] - float(la.prior_precision) * torch.eye(9 * CHANNELS)


@pytest.mark.parametrize("structure", ["kron", "ekfac"])
def test_the_kernel_s_block_is_that_of_the_ggn_channel_by_channel(structure):
    la = fitted(structure)
    torch.testing.assert_close(kernel_of(la), channels(), rtol=1e-6, atol=1e-9)
    assert "1 of a dense block for each row" in la.plan.reason and "a diagonal" not in la.plan.reason


def test_two_fits_have_the_block_of_one():
    x, y = data()
    la = dense.fit(network(), x[:8], y[:8], structure="kron")
    la.fit([(x[8:], y[8:])], override=False)
    torch.testing.assert_close(kernel_of(la), channels(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_kept_posterior_predicts_the_same(structure, tmp_path):
    la, x = fitted(structure), data()[0]
    bridge.save(la, tmp_path / "kept.safetensors")
    again = bridge.load(tmp_path / "kept.safetensors", Laplace(network(), hessian_structure=structure))
    assert torch.equal(again(x), la(x))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_predictions_are_those_of_its_precision(structure):
    la, x = fitted(structure), data(3)[0]
    la.prior_precision = [0.5, 1.0, 2.0, 3.0, 4.0]
    covariance = la.posterior_precision.to_matrix(exponent=-1)
    rows = torch.stack([dense.jacobian(network(), x[i : i + 1]) for i in range(3)])
    found = la.predictive_distribution(x)[1]
    torch.testing.assert_close(found, rows @ covariance @ rows.mT, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("structure", ["kron", "kron_lowrank"])
def test_precisions_of_layers_are_found_by_gradients(structure):
    la, (x, y) = fitted(structure), data(20)
    one = la.optimize_prior_precision(val_loader=[(x, y)])
    assert la.optimize_prior_precision(val_loader=[(x, y)], prior_structure="layerwise").loss <= one.loss
    prior = torch.ones(5, dtype=torch.float64, requires_grad=True)
    la.log_marginal_likelihood(prior).backward()
    assert prior.grad is not None and bool((prior.grad != 0).all())


def test_in_float32_it_is_the_same_block():
    with jax.enable_x64(False):
        x, y = data()
        la = dense.fit(network().float(), x.float(), y, structure="kron")
        torch.testing.assert_close(kernel_of(la).double(), channels(), rtol=1e-3, atol=1e-5)
