"""What the comparison with torch sees, and what it takes for rounding."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
import torch
from torch import nn

from bridge.tracing import MismatchError, explain, trace
from bridge.tracing.comparison import worst_part
from bridge.tracing.exported import trace_export
from bridge.tracing.lowering import LOWERINGS
from bridge.tracing.verify import verify
from tests.bridge.tracing.bodies import Body, batch


def parts(large):
    """Two columns of outputs as large as `large`, and one of order one."""
    torch.manual_seed(0)
    model = Body(lambda self, h, x: h).eval()
    with torch.no_grad():
        model.last.weight[:2] *= large
        model.last.bias[:2] *= large
    return model


def scaled(traced, column, factor):
    """The traced model with one column of its outputs off by a factor."""

    def function(*args):
        out = traced.function(*args)
        return out.at[..., column].multiply(factor)

    return dataclasses.replace(traced, function=function)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("large", [1e3, 1e6, 1e9])
def test_a_tenth_of_a_small_part_beside_a_large_one_is_seen(large, double):
    model, x = parts(large), batch(4)
    with jax.enable_x64(double):
        model, x = (model.double(), x) if double else (model, x.float())

        def wrong(model, inputs):
            return scaled(trace_export(model, inputs), 2, 1.1)

        verify(trace_export(model, (x,)), model, (x,), trace_export)
        with pytest.raises(MismatchError):
            verify(wrong(model, (x,)), model, (x,), wrong)


def test_the_worst_part_is_a_row_a_column_or_a_channel():
    wanted = torch.ones(3, 4)
    wanted[:, 1] = 1e-6
    got = wanted.clone()
    got[:, 1] *= 1.1
    assert worst_part(got, wanted, 1e-30) == pytest.approx(0.1)
    assert worst_part(wanted, wanted, 1e-30) == 0


SOUND = {
    "in float32 on the way": lambda self, h, x: h + (100 * x).long() * 0.1,
    "sums in float32": lambda self, h, x: h * x.sum(-1, keepdim=True, dtype=torch.float32).sin(),
    "a maximum": lambda self, h, x: h.amax(1, keepdim=True) + h,
    "a minimum": lambda self, h, x: h.amin(1, keepdim=True) + h,
    "a largest magnitude": lambda self, h, x: h.norm(p=float("inf"), dim=1, keepdim=True) + h,
    "gradients that cancel": lambda self, h, x: (h - h.mean(-1, keepdim=True)).sum(-1, keepdim=True).expand(-1, 3),
    "saturated": lambda self, h, x: torch.sigmoid(1e3 + h),
    "all but saturated": lambda self, h, x: torch.tanh(30 + h),
    "softmax of one": lambda self, h, x: torch.softmax(h[:, :1], 1).expand(-1, 3) * 2,
    "normalised twice": lambda self, h, x: (h - h.mean(-1, keepdim=True)).mean(-1, keepdim=True) + 0 * h,
}


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("name", SOUND)
def test_sound_models_pass(name, double):
    model, x = Body(SOUND[name]), batch(4)
    model.last = nn.Identity()
    with jax.enable_x64(double):
        trace(model.double() if double else model, x if double else x.float())


def test_explain_shows_a_gradient_that_differs(monkeypatch):
    operator = torch.ops.aten.tanh.default
    stopped = dataclasses.replace(LOWERINGS[operator], function=lambda x: jnp.tanh(jax.lax.stop_gradient(x)))
    monkeypatch.setitem(LOWERINGS, operator, stopped)
    torch.manual_seed(0)
    explanation = explain(nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)), batch(4).float())
    assert max(row.error for row in explanation.rows if row.error is not None) < 1e-5
    assert explanation.gradients["0.weight"] > 0.5 > 1e-4 > explanation.gradients["2.weight"]
    assert "0.weight" in str(explanation)


def test_gradients_that_are_nan_in_torch_too_agree_and_others_do_not():
    model = Body(lambda self, h, x: h.var(0, unbiased=False).sqrt() + h).double().eval()
    with jax.enable_x64(True):
        traced = trace(model, batch(4))
        assert traced.batch.refusal(1) is None  # of one sample, every gradient of the first layer is NaN

        def function(buffers, params, *inputs):
            return traced.function(buffers, params, *inputs) + jnp.sqrt(0 * params["last.bias"].sum())

        for x in (batch(1), batch(4)):
            verify(traced, model, (x,), trace_export)
            with pytest.raises(MismatchError):
                verify(dataclasses.replace(traced, function=function), model, (x,), trace_export)
