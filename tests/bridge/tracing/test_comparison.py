"""Errors as numbers."""

import math

import pytest
import torch

import bridge
from bridge.tracing.comparison import relative_error


def test_norms_of_errors_are_those_of_float64_and_see_infinities():
    a = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    b = a * (1 + 1e-3 * torch.randn(1000, generator=torch.Generator().manual_seed(1)))
    wide = float((a.double() - b.double()).norm() / b.double().norm())
    assert relative_error(bridge.to_jax(a), b) == pytest.approx(wide, rel=1e-6)
    a[0] = b[0] = torch.inf
    a[1] = b[1] = torch.nan
    assert 0 < relative_error(bridge.to_jax(a), b) < 2 * wide
    a[2] = torch.nan
    assert math.isnan(relative_error(bridge.to_jax(a), b))
    assert relative_error(bridge.to_jax(a[:5]), b) == math.inf
    assert relative_error(bridge.to_jax(torch.arange(3)), torch.tensor([0, 1, 3])) == math.inf
    assert relative_error(bridge.to_jax(1e-30 * torch.ones(3)), 2e-30 * torch.ones(3)) == pytest.approx(0.5)
