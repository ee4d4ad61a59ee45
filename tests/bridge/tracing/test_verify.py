"""The judge itself: what it lets pass, what it looks at again, what it refuses."""

import dataclasses

import jax
import pytest
import torch
from torch import nn

import bridge
from bridge.tracing.exported import trace_export
from bridge.tracing.results import torch_results, traced_results
from bridge.tracing.verify import Comparison, _compare, _is_rounding, verify

F32 = torch.float32


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).eval(), (torch.randn(4, 5),)


def with_gradients(traced, factor):
    """The traced model, its gradients multiplied by a factor and its outputs as they were."""

    def function(buffers, params, *inputs):
        @jax.custom_jvp
        def scaled(p):
            return p

        scaled.defjvp(lambda primals, tangents: (primals[0], jax.tree.map(lambda t: factor * t, tangents[0])))
        return traced.function(buffers, scaled(params), *inputs)

    return dataclasses.replace(traced, function=function)


def test_wrong_gradients_are_refused_though_outputs_agree():
    model, inputs = network()

    def trace(model, inputs):
        return with_gradients(trace_export(model, inputs), 1.001)

    with pytest.raises(bridge.MismatchError, match=r"gradients 1\.0e-03 .* In float64: .*gradients 1\.0e-03"):
        verify(trace(model, inputs), model, inputs, trace)


def test_mismatch_in_float32_is_traced_again_in_float64():
    model, inputs = network()
    seen = []

    def again(model, inputs):
        seen.append(inputs[0].dtype)
        return trace_export(model, inputs)

    verify(trace_export(model, inputs), model, inputs, again)
    assert seen == []
    verify(with_gradients(trace_export(model, inputs), 1.001), model, inputs, again)
    assert seen == [torch.float64]


@pytest.mark.parametrize(
    ("outputs", "ours", "torchs", "passes"),
    [
        (1e-6, 3e-3, 2e-3, True),  # as near to float64 as torch itself
        (1e-6, 5e-3, 2e-3, False),  # further off
        (2e-4, 3e-3, 2e-3, False),  # outputs differ: not rounding of gradients alone
        (1e-6, 3e-2, 2e-2, False),  # torch's own rounding is too large to judge by
        (1e-6, float("nan"), 2e-3, False),
        (float("nan"), 1e-3, 2e-3, False),
    ],
)
def test_gradients_pass_only_where_torchs_own_rounding_is_as_large(outputs, ours, torchs, passes):
    compared, *exact = (Comparison(outputs, gradients, "weight") for gradients in (3e-3, ours, torchs))
    assert _is_rounding(compared, F32, *exact) is passes


def test_float64_judges_with_the_same_cotangents():
    model, inputs = network()
    single, cotangents = torch_results(model, inputs, dict(model.named_parameters()))
    double = network()[0].double()
    exact, wide = torch_results(double, (inputs[0].double(),), dict(model.named_parameters()), cotangents)
    assert [c.dtype for c in wide] == [torch.float64]
    for name, gradient in single.gradients.items():
        torch.testing.assert_close(gradient.double(), exact.gradients[name], rtol=1e-5, atol=1e-6)


def test_kinks_that_rounded_weights_flip_too_are_accepted_without_another_trace():
    """One unit lies on its kink for one example, and the traced model falls to the other side than torch."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 1)).eval(), torch.randn(4000, 20)
    with torch.no_grad():
        model[0].bias[0] -= model[0](x[:1])[0, 0]
        active = bool(model[0](x[:1])[0, 0] > 0)
    traced = trace_export(model, (x,))
    bias = traced.params["0.bias"].at[0].add(-1e-6 if active else 1e-6)
    moved = dataclasses.replace(traced, params={**traced.params, "0.bias": bias})
    wanted, cotangents = torch_results(model, (x,), traced.params)
    compared = _compare(traced_results(moved, (x,), cotangents), wanted)
    assert compared.outputs < 1e-5 and 1e-3 < compared.gradients < 1e-2

    def never(model, inputs):
        raise AssertionError("traced again")

    verify(moved, model, (x,), never)
