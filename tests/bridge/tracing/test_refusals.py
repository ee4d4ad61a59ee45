"""What tracing refuses, with the cause; and what explain shows."""

import dataclasses

import jax.numpy as jnp
import pytest
import torch
from torch import nn

from bridge.tracing import TraceError, explain, trace
from bridge.tracing.lowering import LOWERINGS


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 3)
    )


def digits(n=3):
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Branch(nn.Module):
    def forward(self, x):
        if x.sum() > 0:  # a branch on data
            return x
        return -x


class Masked(nn.Module):
    def forward(self, x):
        return x[x > 0].sum()


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Unflatten(0, (2, 2))

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Branch(), "a branch on data"),
        (Masked(), "depends on the data"),
        (Fixed(), r"fixed to 4 by module 'model\.inner'"),
        (torch.jit.script(nn.ReLU()), "scripted"),
        (nn.LazyLinear(2), "lazy"),
        (nn.Linear(3, 3, device="meta"), "meta"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_cannot_be_traced_is_refused_with_its_cause(model, message):
    with pytest.raises(TraceError, match=message):
        trace(model, torch.ones(4, 3))


def test_nan_in_the_weights_is_refused_by_name():
    model = cnn()
    with torch.no_grad():
        model[5].bias[0] = float("nan")
    with pytest.raises(TraceError, match=r"5\.bias"):
        trace(model, digits())


def test_a_batch_on_another_path_through_the_code_that_is_not_carried_is_refused():
    class ByBatch(nn.Module):
        def forward(self, x):
            return x * 2 if x.shape[0] > 3 else torch.special.bessel_j0(x)

    traced = trace(ByBatch(), torch.ones(4, 2))
    with pytest.raises(ValueError, match="another path"):
        traced.apply(traced.params, jnp.ones((2, 2)))


def test_a_misspelt_option_is_refused():
    with pytest.raises(TypeError):
        trace(cnn(), digits(), verfy=True)  # pyright: ignore[reportCallIssue]
    with pytest.raises(ValueError, match="torch2jax"):
        trace(cnn(), digits(), tracer="fx")  # pyright: ignore[reportArgumentType]


def test_torch2jax_gets_the_exact_gelu():
    trace(nn.Sequential(nn.Linear(4, 4), nn.GELU()), torch.randn(3, 4) * 3, tracer="torch2jax")


def test_torch2jax_refuses_a_branch_on_data():
    with pytest.raises(TraceError, match="torch2jax cannot"):
        trace(Branch(), torch.ones(2, 2), tracer="torch2jax")


def test_explain_shows_where_a_mismatch_begins(monkeypatch):
    operator = torch.ops.aten.relu.default
    monkeypatch.setitem(LOWERINGS, operator, dataclasses.replace(LOWERINGS[operator], function=lambda x: x))
    errors = {row.module: row.error for row in explain(cnn(), digits()).rows}
    assert errors["model.0"] < 1e-5 < errors["model.1"]
    assert "model.1" in str(explain(cnn(), digits()))
