"""A trace is kept for the next fit exactly where the model differs in its weights alone."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bridge import Laplace
from bridge.retrace import described

pytestmark = pytest.mark.in_turns

torch.manual_seed(0)
X, Y = torch.randn(20, 4), torch.randint(3, (20,))
LOADER = DataLoader(TensorDataset(X, Y), batch_size=10)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last, self.power = nn.Linear(4, 6), nn.Linear(6, 3), 1
        self.register_buffer("scale", torch.ones(6))
        self.settings = {"shift": 0.0}

    def forward(self, x):
        return self.last((self.first(x) * self.scale).tanh() ** self.power + self.settings["shift"])


def fitted(model):
    return Laplace(model, "classification", progress=False, rank=10).fit(LOADER)


def move(model):
    with torch.no_grad():
        model.first.weight.add_(0.5)
        model.scale.mul_(2.0)


def set_power(model):
    model.power = 2


def set_shift(model):
    model.settings["shift"] = 1.0


def freeze(model):
    model.first.requires_grad_(False)


def replace(model):
    model.last = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))


@pytest.mark.parametrize("change", [move, set_power, set_shift, freeze, replace])
def test_second_fit_is_that_of_the_changed_model(change):
    model = Net()
    la = fitted(model)
    change(model)
    torch.testing.assert_close(la.fit(LOADER)(X), fitted(model)(X))


@pytest.mark.parametrize(("change", "kept"), [(move, True), (set_power, False), (set_shift, False), (freeze, False)])
def test_trace_is_kept_where_weights_alone_have_changed(change, kept):
    model = Net()
    la = fitted(model)
    first = la.fit_result()[0].traced.function
    change(model)
    assert (la.fit(LOADER).fit_result()[0].traced.function is first) is kept


def test_change_that_cannot_be_seen_is_found_by_comparison():
    class Hidden:
        power = 1

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.hidden = nn.Linear(4, 3), Hidden()

        def forward(self, x):
            return self.layer(x) ** self.hidden.power

    model = Net()
    la = fitted(model)
    before = described(model)
    model.hidden.power = 3
    assert described(model) == before
    torch.testing.assert_close(la.fit(LOADER)(X), fitted(model)(X))
