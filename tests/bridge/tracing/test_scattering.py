"""Elements combined by index have torch's values and derivatives, with equal elements, zeros and places met by none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from bridge.tracing.lowering.scattering import index_reduce, scatter_reduce
from tests.bridge.tracing.oracle import assert_carried

pytestmark = pytest.mark.in_turns

KINDS = ("sum", "mean", "amax", "amin", "prod")


def small(seed, *shape):
    """Few values, so that many are equal or zero."""
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).double().requires_grad_()


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_torchs(x64, kind, include_self):
    for seed in range(8):
        x, source, cotangent = small(seed, 3, 4), small(seed + 50, 3, 6), small(seed + 100, 3, 4).detach()
        index = torch.randint(0, 4, (3, 6), generator=torch.Generator().manual_seed(seed))
        wanted = x.scatter_reduce(1, index, source, kind, include_self=include_self)
        gradients = torch.autograd.grad(wanted, (x, source), cotangent)
        given = (jnp.asarray(x.detach().numpy()), jnp.asarray(source.detach().numpy()))

        def of(x, source, index=index):
            return scatter_reduce(x, 1, jnp.asarray(index.numpy()), source, kind, include_self=include_self)

        found, pullback = jax.vjp(of, *given)
        np.testing.assert_allclose(found, wanted.detach(), atol=1e-12)
        for got, gradient in zip(pullback(jnp.asarray(cotangent.numpy())), gradients, strict=True):
            np.testing.assert_allclose(got, gradient, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_integers_are_combined_as_torch_combines_them(kind, include_self, dtype):
    generator = torch.Generator().manual_seed(0)
    x, source = (torch.randint(0, 9, (3, n), generator=generator).to(dtype) for n in (4, 6))
    index = torch.randint(0, 4, (3, 6), generator=generator)
    wanted = x.scatter_reduce(1, index, source, kind, include_self=include_self)
    arrays = [jnp.asarray(t.numpy()) for t in (x, index, source)]
    found = scatter_reduce(arrays[0], 1, *arrays[1:], kind, include_self=include_self)
    assert found.dtype == arrays[0].dtype
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.filterwarnings("ignore:index_reduce")
@pytest.mark.parametrize("kind", KINDS[1:])
def test_whole_slices_are_combined_too(kind):
    x, source = small(1, 4, 3).detach(), small(2, 6, 3).detach()
    index = torch.tensor([0, 2, 2, 3, 0, 2])
    wanted = x.index_reduce(0, index, source, kind, include_self=False)
    arrays = [jnp.asarray(t.numpy()) for t in (x, index, source)]
    np.testing.assert_allclose(index_reduce(arrays[0], 0, *arrays[1:], kind, include_self=False), wanted)


class Messages(nn.Module):
    """Edges of a graph, given as indices, whose messages nodes combine."""

    def __init__(self, kind):
        super().__init__()
        self.edge, self.kind = nn.Linear(2, 3), kind

    def forward(self, nodes, edges):
        sent = torch.gather(self.edge(nodes), 1, edges[..., :1].expand(-1, -1, 3))
        at = edges[..., 1:].expand(-1, -1, 3)
        return torch.zeros_like(sent[:, :4]).scatter_reduce(1, at, sent, self.kind, include_self=False)


@pytest.mark.parametrize("kind", KINDS)
def test_message_passing_is_carried(kind):
    generator = torch.Generator().manual_seed(0)
    nodes = torch.randn(2, 4, 2, dtype=torch.float64, generator=generator)
    assert_carried(Messages(kind), (nodes, torch.randint(0, 4, (2, 7, 2), generator=generator)))
