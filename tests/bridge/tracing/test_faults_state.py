"""What a forward keeps or writes: a model is as it was after tracing, and one that is no function is refused."""

import copy
import random
import time

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bridge.tracing import TraceError, explain, trace
from tests.bridge.tracing.bodies import Body, assert_same, batch


def counted(self, h, x):
    self.count += 1
    self.calls += 1
    self.kept.append(h.sum().item() if not torch.compiler.is_compiling() else 0.0)
    return h


def cached(self, h, x):
    if "bias" not in self.cache:
        self.cache["bias"] = 2 * self.first.weight[:1]
    return h + self.cache["bias"]


def lazily(self, h, x):
    if not hasattr(self, "_bias"):
        self._bias = 2 * self.first.weight[:1]
    return h + self._bias


SOUND = {"counted": counted, "cached": cached, "lazily": lazily}


def everything(model):
    values = {name: value.clone() for name, value in model.state_dict().items()}
    return values, {name: copy.copy(value) for name, value in vars(model).items() if not name.startswith("_")}


@pytest.mark.parametrize("name", SOUND)
def test_what_a_forward_keeps_is_put_back_and_its_function_carried(name):
    model, x = Body(SOUND[name]).double().eval(), batch(4)
    values, attributes = everything(model)
    names, states = set(vars(model)), (torch.get_rng_state(), random.getstate())
    with jax.enable_x64(True):
        traced = trace(model, x)
        explain(model, x)
        assert set(vars(model)) == names
        assert all(torch.equal(values[key], value) for key, value in model.state_dict().items())
        assert {key: getattr(model, key) for key in attributes} == attributes
        assert torch.equal(states[0], torch.get_rng_state()) and states[1] == random.getstate()
        assert_same(copy.deepcopy(model), traced, x) if name == "counted" else None


def test_an_input_written_in_forward_stays_the_users():
    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return x.mul_(2) * self.weight

    x = torch.ones(2, 3)
    traced = trace(Doubled(), x)
    assert bool((x == 1).all())
    np.testing.assert_allclose(traced.apply(traced.params, jax.numpy.ones((2, 3))), 2.0)


def number(self, h, x):
    self.count += 1
    return h * self.count


def of_buffer(self, h, x):
    self.calls += 1
    return h * self.calls


def growing(self, h, x):
    self.kept.append(1.0)
    return h * len(self.kept)


def biased(self, h, x):
    with torch.no_grad():
        self.last.bias.add_(0.5)
    return h


def clamped(self, h, x):
    self.last.weight.data.clamp_(-0.1, 0.1)
    return h


REFUSED = {
    "a counter": (number, r"no function of its inputs.*h \* self\.count"),
    "a buffer": (of_buffer, "no function of its inputs"),
    "a list": (growing, "no function of its inputs"),
    "the clock": (lambda self, h, x: h * (time.perf_counter() % 1), "no function of its inputs"),
    "python's random numbers": (lambda self, h, x: h * random.random(), "no function of its inputs"),
    "numpy's random numbers": (lambda self, h, x: h + torch.from_numpy(np.random.rand(3)), "no function"),
    "torch's random numbers": (lambda self, h, x: h + torch.rand(3), r"random numbers.*aten\.rand.*rand\(3\)"),
    "dropout": (lambda self, h, x: F.dropout(h, 0.5), r"random numbers.*model'.*training=self\.training"),
    "a written parameter": (biased, r"writes into parameter 'last\.bias'.*add_\(0\.5\)"),
    "a parameter written by data": (clamped, r"writes into parameter 'last\.weight'.*clamp"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_forward_that_is_no_function_is_refused_and_left_as_it_was(name):
    body, message = REFUSED[name]
    model = Body(body).double().eval()
    values, attributes = everything(model)
    with jax.enable_x64(True), pytest.raises(TraceError, match=message):
        trace(model, batch(4))
    assert all(torch.equal(values[key], value) for key, value in model.state_dict().items())
    assert {key: getattr(model, key) for key in attributes} == attributes


def test_a_buffer_that_views_a_weight_is_refused():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.register_buffer("transposed", self.linear.weight.detach().t())

        def forward(self, x):
            return self.linear(x) + x @ self.transposed

    with pytest.raises(TraceError, match=r"'transposed' shares the memory of parameter 'linear\.weight'"):
        trace(Tied(), torch.randn(2, 3))
