"""Backwards that no graph holds: refused by name, also on data where they change nothing."""

import jax
import pytest
import torch
from torch import nn
from torch.autograd import grad as grad_by_name
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bridge.tracing import TraceError, trace
from bridge.tracing.hooks import may_change
from tests.bridge.tracing.bodies import Body, assert_same, batch


class Through(torch.autograd.Function):
    """Straight through a clamp."""

    @staticmethod
    def forward(ctx, x):
        return x.clamp(-4, 4)

    @staticmethod
    def backward(ctx, *grads):
        return grads[0]


def hooked(self, h, x):
    h.register_hook(lambda g: g.clamp(-10, 10))
    return h


def inner_derivative(self, h, x):
    return torch.autograd.grad(h.sum(), self.first.weight, create_graph=True)[0].sum() * h


def imported_derivative(self, h, x):
    return grad_by_name(h.sum(), self.first.weight, create_graph=True)[0].sum() * h


def functional_derivative(self, h, x):
    return torch.func.vmap(torch.func.grad(lambda a: (a**2).sum()))(h)


REFUSED = {
    "function": (lambda self, h, x: Through.apply(h), r"Through\.apply.*model'.*test_faults_backward"),
    "hook": (hooked, r"register_hook.*test_faults_backward"),
    "derivative": (inner_derivative, "derivatives inside forward"),
    "derivative by a name of its own": (imported_derivative, "derivatives inside forward.*test_faults_backward"),
    "functional derivative": (functional_derivative, "derivatives inside forward"),
}


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", REFUSED)
def test_what_no_graph_holds_is_refused_where_it_stands(name, verify):
    body, message = REFUSED[name]
    apply, hook, grad = torch.autograd.Function.apply, torch.Tensor.register_hook, torch.autograd.grad
    with pytest.raises(TraceError, match=message):
        trace(Body(body), batch(2).float(), verify=verify)
    assert (torch.autograd.Function.apply, torch.Tensor.register_hook, torch.autograd.grad) == (apply, hook, grad)


def on_module(model):
    model.first.register_full_backward_hook(lambda module, given, got: (2 * given[0],))


def before_module(model):
    model.first.register_full_backward_pre_hook(lambda module, grads: (2 * grads[0],))


def on_parameter(model):
    model.first.weight.register_hook(lambda g: 0 * g)


@pytest.mark.parametrize(
    ("install", "owner"),
    [(on_module, r"model\.first"), (before_module, r"model\.first"), (on_parameter, r"first\.weight")],
)
def test_hooks_that_change_gradients_are_refused_by_their_owner(install, owner):
    model = Body(lambda self, h, x: h)
    install(model)
    with pytest.raises(TraceError, match=f"{owner}.*backward hook"):
        trace(model, batch(2).float())


def keep(self, h, x):
    def look(gradient):
        self.kept[0] = gradient

    h.register_hook(look)
    return h


SOUND = {
    "a hook that looks": keep,
    "a checkpoint": lambda self, h, x: checkpoint(torch.tanh, h, use_reentrant=False),
    "straight through by detach": lambda self, h, x: h + (h.round() - h).detach(),
    "a forward derivative": lambda self, h, x: torch.func.jvp(torch.sin, (h,), (x,))[1],
}


@pytest.mark.parametrize("name", SOUND)
def test_what_changes_no_gradient_is_carried(name):
    model = Body(SOUND[name]).double().eval()
    with jax.enable_x64(True):
        assert_same(model, trace(model, batch(2)), batch(5, 20.0))


def test_a_hook_may_change_gradients_unless_it_returns_nothing():
    def logs(g):
        print(g)

    def sometimes(g):
        if g.norm() > 1:
            return g / g.norm()
        return None

    assert not may_change(logs)
    assert may_change(sometimes) and may_change(lambda g: g * 2) and may_change(nn.ReLU())


def of_values(self, h, x):
    return h + 2 * h.data


def of_weights(self, h, x):
    return h + F.linear(x, self.first.weight.data)


def of_signs(self, h, x):
    return h * (h.data > 0) + h.data.abs().sum(-1, keepdim=True)


@pytest.mark.parametrize("body", [of_values, of_weights, of_signs])
def test_data_is_read_as_values_without_a_derivative(body):
    model = Body(body).double()
    with jax.enable_x64(True):
        assert_same(model, trace(model, batch(4)), batch(5))


@pytest.mark.parametrize("body", [lambda self, h, x: h.data.mul_(2) * h, lambda self, h, x: [h.data.zero_(), h][1]])
def test_a_write_through_data_is_refused_where_it_stands(body):
    with pytest.raises(
        TraceError, match=r"writes into a tensor through detach\(\) or \.data, by aten.*in module 'model'"
    ):
        trace(Body(body), batch(2).float())


def test_data_that_is_replaced_is_refused_where_it_stands():
    def replaced(self, h, x):
        h.data = h.data * 2
        return h

    with pytest.raises(TraceError, match=r"assigns to \.data.*test_faults_backward.py.*\n.*detach"):
        trace(Body(replaced), batch(2).float())


def test_what_leaves_torch_is_refused_with_a_remedy():
    with pytest.raises(TraceError, match=r"test_faults_backward.py.*\n.*torch's own operators"):
        trace(Body(lambda self, h, x: h + torch.from_numpy(h.detach().numpy())), batch(2).float())
