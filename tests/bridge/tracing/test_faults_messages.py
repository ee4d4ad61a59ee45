"""What cannot be traced is refused by an error that names the cause, the place and the remedy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from bridge.tensors import to_jax
from bridge.tracing import TraceError, trace
from tests.bridge.tracing.bodies import Body, batch


def branch(self, h, x):
    return h if h.sum() > 0 else -h


def written_detached(self, h, x):
    h.detach().mul_(2)
    return h + 1


def packed(self, h, x):
    lengths = (x[:, 0] > 0).long() + 1
    steps = nn.utils.rnn.pack_padded_sequence(h[:, :, None], lengths, batch_first=True, enforce_sorted=False)
    return h + nn.GRU(1, 3, batch_first=True).to(h)(steps)[1][-1] * 0


MESSAGES = {
    "packed sequences": (packed, r"packs its sequences.*pack_padded_sequence\(h.*lengths - 1"),
    "a write through detach": (written_detached, r"through detach\(\) or \.data, by aten\.mul_.*reads it afterwards"),
    "complex": (lambda self, h, x: torch.view_as_real(torch.polar(h.abs(), h)).sum(-1), "complex numbers.*polar"),
    "fft": (lambda self, h, x: torch.fft.rfft(h).abs()[:, :1] + h, r"complex numbers.*rfft"),
    "an item": (lambda self, h, x: h * self.first.weight[0, 0].item(), r"number out of a tensor.*item\(\)"),
    "a branch": (branch, r"branches on values of its data.*\n.*h\.sum\(\) > 0"),
    "dropout": (lambda self, h, x: F.dropout(h, 0.5), r"random numbers.*training=self\.training"),
    "a part of torch's": (
        lambda self, h, x: torch.special.i1e(h),
        r"No JAX lowering for aten\.special_i1e.*takes it apart.*\n.*\n.*lowers\(torch\.ops\.aten\.special_i1e",
    ),
    "reentrant checkpoint": (lambda self, h, x: checkpoint(torch.tanh, h, use_reentrant=True), "use_reentrant"),
    "an overwritten input": (lambda self, h, x: h + x.mul_(2), "Torch itself cannot take the gradients"),
    "a length": (lambda self, h, x: h.reshape(len(h), 3), r"fixed to 4 by .*len\(h\).*x\.shape\[0\]"),
    "numpy": (lambda self, h, x: h + torch.from_numpy(np.sin(x.numpy())), r"cannot capture.*\n.*x\.numpy\(\)"),
    "an error of its own": (lambda self, h, x: h.reshape(7, 7), r"fails on the example.*h\.reshape\(7, 7\)"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MESSAGES)
def test_refusals_name_the_cause_and_the_place(name, capfd):
    body, message = MESSAGES[name]
    with pytest.raises(TraceError, match=message):
        trace(Body(body), batch(4).float())
    shown = capfd.readouterr()
    assert not shown.out and "def forward" not in shown.err  # no graph on the screen


def test_argsort_and_rounded_decimals_are_carried():
    model = Body(lambda self, h, x: h * h.argsort(1) + torch.round(h, decimals=2))
    traced = trace(model, batch(4).float())
    got = traced.apply(traced.params, to_jax(batch(3).float()))
    np.testing.assert_allclose(got, model(batch(3).float()).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_constants_beyond_32_bits_are_carried():
    class Hashed(nn.Module):
        def forward(self, i):
            return (i * 2654435761 % 101).float()

    i = torch.tensor([[300, 70000]])
    np.testing.assert_array_equal(trace(Hashed(), i).apply({}, to_jax(i)), Hashed()(i).numpy())
