"""What is rewritten around convolutions keeps torch's value, vjp and jvp in float64."""

import jax
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bridge.tensors import to_jax
from bridge.tracing import trace
from bridge.tracing.lowering import convolution
from tests.bridge.tracing.oracle import assert_carried, randomized

pytestmark = pytest.mark.in_turns


def images(channels=3, size=9):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, channels, size, size, dtype=torch.float64, generator=generator)


@pytest.fixture
def every_map_is_large(monkeypatch):
    """Small images take the way of those above 64 x 64 pixels: XLA's kernel, its weights' gradient by patches."""
    monkeypatch.setattr(convolution, "_prefers_xla", lambda *_: True)
    monkeypatch.setattr(convolution, "_LARGE_MAP", 0)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")


@pytest.mark.usefixtures("every_map_is_large")
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_large_maps_have_torchs_derivatives(stride, bias):
    """By the weights of both layers, so also by the input of the second."""
    first, second = nn.Conv2d(3, 4, 3, stride, 1, bias=bias), nn.Conv2d(4, 2, 3, padding=1, dilation=2)
    assert_carried(nn.Sequential(first, nn.Tanh(), second), images())


@pytest.mark.usefixtures("every_map_is_large")
def test_large_maps_have_per_sample_jacobians_and_second_derivatives():
    model = randomized(nn.Sequential(nn.Conv2d(3, 2, 3), nn.Tanh(), nn.Conv2d(2, 2, 3), nn.AdaptiveAvgPool2d(1)))
    x = images(size=6)
    names = [name for name, _ in model.named_parameters()]
    weights = tuple(p.detach() for p in model.parameters())

    def outputs(*values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,))

    def total(*values):
        return outputs(*values).square().sum()

    with jax.enable_x64(True):
        traced = trace(model, (x,), verify=False)
        arrays = to_jax(x)
        per_sample = jax.vmap(jax.jacrev(lambda p, a: traced.apply(p, a[None])[0]), (None, 0))(traced.params, arrays)
        hessian = jax.jacfwd(jax.grad(lambda p: (traced.apply(p, arrays) ** 2).sum()))(traced.params)
        wanted = torch.autograd.functional.jacobian(outputs, weights)
        for name, jacobian in zip(names, wanted, strict=True):
            np.testing.assert_allclose(per_sample[name], jacobian.numpy(), atol=1e-12)
        second = torch.autograd.functional.hessian(total, weights)
        for i, a in enumerate(names):
            for j, b in enumerate(names):
                np.testing.assert_allclose(hessian[a][b], second[i][j].numpy(), atol=1e-10)


@given(
    kernel=st.sampled_from([1, 3]),
    groups=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
    affine=st.booleans(),
    tracked=st.booleans(),
    size=st.sampled_from([5, 40]),
)
@settings(max_examples=20, deadline=None)
def test_batch_norm_after_a_convolution_equals_torchs(kernel, groups, bias, affine, tracked, size):
    norm = nn.BatchNorm2d(8, affine=affine, track_running_stats=tracked)
    layers = nn.Conv2d(4, 8, kernel, groups=groups, bias=bias), norm, nn.Tanh()
    assert_carried(nn.Sequential(*layers), images(4, size))


class ReadsBoth(nn.Module):
    """The convolution's result is read between its normalisations, and beside them."""

    def __init__(self):
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x):
        y = self.conv(x)
        return self.two(self.one(y)) + (self.scale * y).tanh() - y * self.one(y)


def test_a_convolution_read_beside_its_normalisation_keeps_its_own_values():
    assert_carried(ReadsBoth(), images())


def count(jaxpr, name):
    return sum(equation.primitive.name == name for equation in jaxpr.jaxpr.eqns)


def test_a_normalised_convolution_runs_once_and_scales_its_kernel():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    x = images().float()
    traced = trace(model, (x,))
    jaxpr = jax.make_jaxpr(lambda p, a: traced.function(traced.buffers, p, a))(traced.params, to_jax(x))
    assert count(jaxpr, "dot_general") == 1
    products = [e.outvars[0].aval.size for e in jaxpr.jaxpr.eqns if e.primitive.name == "mul"]
    assert max(products) == 4 * 3, "nothing as large as the images is multiplied"


def test_half_precision_normalises_the_rounded_result_as_torch_does():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).bfloat16().eval()
    x = images().bfloat16()
    got = np.asarray(trace(model, (x,)).apply(to_jax(dict(model.named_parameters())), to_jax(x)), np.float32)
    np.testing.assert_allclose(got, model(x).float().detach().numpy(), rtol=2e-2, atol=2e-2)
