"""In-place operators: made plain here where only they see the memory, by torch's functionalisation elsewhere."""

import jax
import pytest
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.nn import functional as F

from bridge.tracing import MismatchError, explain, trace
from tests.bridge.tracing.oracle import assert_carried, compare


class Body(nn.Module):
    """Two weights around a function of the hidden values and the input."""

    def __init__(self, body):
        super().__init__()
        self.first, self.body = nn.Linear(4, 6), body
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("var", torch.ones(6))

    def forward(self, x):
        return self.body(self, self.first(x), x)


def chain(self, h, x):
    before = h + 2
    h.mul_(3).relu_()
    return h + before


def residual(self, h, x):
    shortcut = torch.tanh(x).repeat(1, 2)[:, :6]
    h += shortcut
    h *= 2
    return F.relu(h, inplace=True).view(-1, 3, 2).sum(1)


def first_name_read_last(self, h, x):
    after = h.mul_(2)
    other = after.add_(1)
    return h - other.exp() + after


def promoted(self, h, x):
    h.add_(torch.arange(6, dtype=torch.int64), alpha=2)
    return h


def idle_dropout(self, h, x):
    flat = torch.flatten(h.relu_()[:, None], 1)
    return F.dropout(flat, training=self.training, inplace=True) * h


def through_a_view(self, h, x):
    h[:, :2].mul_(2)
    return h


def through_a_transpose(self, h, x):
    h.t()[1].relu_()
    return h


def under_a_view(self, h, x):
    view = h[:, 1:]
    h.mul_(2)
    return view


def behind_idle_dropout(self, h, x):
    same = F.dropout(h, training=self.training)  # the same memory, which its schema does not say
    same.relu_()
    return h


def behind_einsum(self, h, x):
    turned = torch.einsum("ij->ji", h)  # the same memory, which torch's functionalisation does not know either
    h.relu_()
    return turned.T


def on_a_part(self, h, x):
    left, right = h.narrow(1, 0, 3), h.narrow(1, 3, 3)
    right.mul_(2)
    return h, left


def on_the_input(self, h, x):
    x = x.clone().view(-1, 2, 2)
    x[:, 0].exp_()
    return h.sum(1)[:, None, None] * x


def on_statistics(self, h, x):
    return F.batch_norm(h, self.mean, self.var, training=True)


def on_a_buffer(self, h, x):
    self.mean.add_(1)
    return h * self.mean


MINE = (chain, residual, first_name_read_last, promoted, idle_dropout)
TORCHS = (*(through_a_view, through_a_transpose, under_a_view, behind_idle_dropout, on_a_part, on_the_input),)


@pytest.fixture
def retraced(monkeypatch):
    """The graphs that torch functionalised."""
    seen = []
    whole = ExportedProgram.run_decompositions

    def counted(self, *args):
        seen.append(self)
        return whole(self, *args)

    monkeypatch.setattr(ExportedProgram, "run_decompositions", counted)
    return seen


@pytest.mark.parametrize("body", [*MINE, *TORCHS], ids=lambda body: body.__name__)
def test_writes_give_what_torch_gives_and_few_need_a_second_trace(body, retraced):
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert_carried(Body(body), x)
    assert bool(retraced) is (body in TORCHS)


@pytest.mark.parametrize("body", [on_statistics, on_a_buffer])
def test_what_writes_into_a_buffer_goes_to_torch(body, retraced):
    trace(Body(body), torch.randn(3, 4), verify=False)
    assert retraced


def test_a_write_under_a_view_that_torch_does_not_see_is_refused():
    with pytest.raises(MismatchError):
        trace(Body(behind_einsum), torch.randn(3, 4))


def test_a_write_to_the_users_input_goes_to_torch(retraced):
    trace(Body(lambda self, h, x: x.mul_(2)[:, :1] * h), torch.randn(3, 4), verify=False)
    assert retraced


def test_explain_compares_what_a_module_returned_before_others_wrote_into_it():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True))
    rows = {row.module: row.error for row in explain(model, torch.randn(3, 4)).rows}
    assert rows["model.0"] < 1e-5 and rows["model.1"] < 1e-5


class LazyBuffer(nn.Module):
    """A buffer that the first forward makes, as cached masks and positions are."""

    def __init__(self, declared):
        super().__init__()
        self.first = nn.Linear(4, 3)
        if declared:
            self.register_buffer("places", None)

    def forward(self, x):
        h = self.first(x)
        if getattr(self, "places", None) is None:
            self.register_buffer("places", torch.arange(3.0))
        return h + self.places


@pytest.mark.parametrize("declared", [True, False])
def test_a_buffer_made_by_the_first_forward_is_no_write_into_an_input(declared):
    model, x = LazyBuffer(declared).double(), torch.randn(5, 4, dtype=torch.float64)
    before = set(model.state_dict())
    with jax.enable_x64(True):
        first = trace(model, x)
        assert set(model.state_dict()) == before
        compare(model, first, (x[:2],), 1e-9)  # runs the model, which makes its buffer
        assert "places" in model.state_dict()
        compare(model, trace(model, x), (x[:2],), 1e-9)
