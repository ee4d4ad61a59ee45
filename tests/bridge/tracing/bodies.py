"""A model whose forward is one function, for tables of what a forward may do."""

import jax
import numpy as np
import torch
from torch import nn

from bridge.tensors import to_jax


class Body(nn.Module):
    """Two layers around `body(self, hidden, x)`, with the kinds of state that a model may keep."""

    def __init__(self, body):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 3)
        self.body = body
        self.register_buffer("calls", torch.zeros(()))
        self.count, self.kept, self.cache = 0, [2.0], {}

    def forward(self, x):
        return self.last(self.body(self, self.first(x), x))


def batch(n, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, 3, dtype=torch.float64, generator=generator)


def gradients(model, traced, x):
    """Torch's gradients of the summed output, and those of the traced function."""
    names = {name: p for name, p in model.named_parameters() if name in traced.params}
    wanted = torch.autograd.grad(
        model(x.clone()).sum(), list(names.values()), materialize_grads=True, allow_unused=True
    )
    got = jax.grad(lambda p: traced.apply(p, to_jax(x)).sum())(traced.params)
    return dict(zip(names, wanted, strict=True)), got


def assert_same(model, traced, x):
    """Values and gradients, by torch and by the traced function."""
    wanted = model(x.clone()).detach()
    got = np.asarray(traced.apply(traced.params, to_jax(x)))
    assert got.shape == tuple(wanted.shape)
    np.testing.assert_allclose(got, wanted.numpy(), rtol=1e-9, atol=1e-12)
    if len(x):
        wanted, got = gradients(model, traced, x)
        for name in wanted:
            np.testing.assert_allclose(np.asarray(got[name]), wanted[name].numpy(), rtol=1e-7, atol=1e-10)
