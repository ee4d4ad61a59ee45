"""Code that looks at the batch size: other sizes give what torch gives, or are refused by name."""

import dataclasses

import jax
import pytest
import torch
from torch import nn

from bridge.tensors import to_jax
from bridge.tracing import BatchSizeError, TraceError, trace
from tests.bridge.tracing.bodies import Body, assert_same, batch

pytestmark = pytest.mark.in_turns


def remainders(count):
    """A path for each remainder of the batch size."""
    return lambda self, h, x: h * next(k for k in range(count) if x.shape[0] % count == k)


# a function of the hidden values, and the sizes that a trace with four samples cannot carry
BRANCHES = {
    "one": (lambda self, h, x: h if x.shape[0] == 1 else 2 * h, ()),
    "more than one": (lambda self, h, x: h - h.mean(0) if x.shape[0] > 1 else h, ()),
    "even": (lambda self, h, x: h if x.shape[0] % 2 == 0 else 2 * h, ()),
    "not three": (lambda self, h, x: h if x.shape[0] != 3 else 2 * h, ()),
    "three or seven": (lambda self, h, x: h if x.shape[0] in (3, 7) else 2 * h, ()),
    "elements": (lambda self, h, x: h if x.numel() % 4 == 0 else 2 * h, ()),
    "at most": (lambda self, h, x: h if 2 * x.shape[0] <= 9 else 2 * h, ()),
    "halves": (lambda self, h, x: h if x.shape[0] // 2 == 2 else 2 * h, ()),
    "a check": (lambda self, h, x: (torch._check(x.shape[0] < 5), h)[1], (5, 7, 33)),
    "same numbers": (lambda self, h, x: h.detach() + 0 * h if x.shape[0] == 1 else h, ()),
    "weights swapped": (lambda self, h, x: h * self.first.weight[0] if len(x.unbind(1)) and x.shape[0] > 1 else h, ()),
    "wired otherwise": (lambda self, h, x: h + (x if x.shape[0] > 1 else h), ()),
    "squeezed": (lambda self, h, x: h.squeeze(), ()),
    "constants of their own": (
        lambda self, h, x: h * torch.tensor([1.0, 2.0, 3.0]) if x.shape[0] < 5 else h + torch.tensor([4.0, 5.0, 6.0]),
        (),
    ),
    "branch in a branch": (lambda self, h, x: h if x.shape[0] % 2 else 2 * h if x.shape[0] % 3 else 3 * h, ()),
    "a long batch": (lambda self, h, x: h if x.shape[0] < 30 else 2 * h, ()),
    "a piece's length": (lambda self, h, x: h * h[: h.shape[0] // 2].shape[0] if h[1::2].shape[0] == 2 else h, ()),
    "three ways": (remainders(3), ()),
    "too many ways": (remainders(8), (7, 33)),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_a_branch_on_the_batch_size_is_followed_or_refused_by_name(name):
    body, refused = BRANCHES[name]
    model = Body(body).double().eval()
    with jax.enable_x64(True):
        traced = trace(model, batch(4))
        for n in (1, 2, 3, 4, 5, 7, 33):
            reason = traced.batch.refusal(n)
            assert bool(reason) is (n in refused)
            if reason is None:
                assert_same(model, traced, batch(n))
                continue
            with pytest.raises(BatchSizeError, match="another path"):
                traced.apply(traced.params, to_jax(batch(n)))


def test_the_refusal_shows_the_condition_and_its_line():
    traced = trace(Body(remainders(8)), batch(4).float())
    with pytest.raises(
        ValueError, match=r"\(n % 8\) == 4 \(.*test_faults_batch\.py, line \d+: .*Trace the model again"
    ):
        traced.apply(traced.params, to_jax(batch(7).float()))


def test_paths_follow_other_weights_and_keep_those_of_the_model():
    model = Body(lambda self, h, x: h if x.shape[0] % 2 == 0 else 2 * h).double().eval()
    with jax.enable_x64(True):
        traced = trace(model, batch(4))
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(0.5)
        params = {name: to_jax(p.detach()) for name, p in model.named_parameters()}
        for n in (3, 4):
            assert_same(model, dataclasses.replace(traced, params=params), batch(n))


def test_a_path_that_cannot_be_carried_is_refused_and_the_others_hold():
    def body(self, h, x):
        return torch.special.bessel_j0(h) if x.shape[0] % 2 else h  # no lowering

    model = Body(body).double().eval()
    with jax.enable_x64(True):
        traced = trace(model, batch(4))
        assert_same(model, traced, batch(6))
        with pytest.raises(BatchSizeError, match="another path"):
            traced.apply(traced.params, to_jax(batch(3)))


# pieces of a batch, traced with two samples: whatever there are at most, or at least
PIECES = {
    "chunks": lambda self, h, x: torch.chunk(h, 2, 0)[0].sum(0) + h,
    "first three": lambda self, h, x: h[:3].sum(0) + h,
    "first three, reshaped": lambda self, h, x: h + h[:3].reshape(h[:3].shape[0], -1).sum(0),
    "every second": lambda self, h, x: h[::2].sum(0) + h,
    "first half": lambda self, h, x: h[: h.shape[0] // 2].sum(0) + h,
    "first half, and what torch takes apart": lambda self, h, x: (
        h[: h.shape[0] // 2].sum(0) + h - h.std(-1, keepdim=True)
    ),
    "last two": lambda self, h, x: h[-2:].sum(0) + h,
    "all but one": lambda self, h, x: h[1:].sum(0) + h,
}


@pytest.mark.parametrize("name", PIECES)
def test_pieces_of_a_batch_of_two_are_those_of_other_batches(name):
    model = Body(PIECES[name]).double().eval()
    with jax.enable_x64(True):
        traced = trace(model, batch(2))
        for n in (1, 2, 3, 5, 6):
            assert_same(model, traced, batch(n))


def test_conditions_on_memory_alone_part_no_sizes():
    model = Body(PIECES["first half, and what torch takes apart"]).double().eval()
    with jax.enable_x64(True):
        traced = trace(model, batch(2))
    assert not traced.batch.others
    assert all("== 1" not in guard.text for guard in traced.batch.guards)


def test_a_size_that_torch_refuses_is_refused_in_its_words():
    traced = trace(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False)), batch(4).float())
    with pytest.raises(BatchSizeError, match="Expected more than 1 value per channel"):
        traced.apply(traced.params, to_jax(batch(1).float()))


def test_a_size_made_a_number_is_named_with_its_line():
    with pytest.raises(TraceError, match=r"fixed to 4 by module 'model\.last', .*test_faults_batch.*h \* len\(h\)"):
        trace(Body(lambda self, h, x: (h * len(h)).reshape(len(h), 3)), batch(4).float())


def test_inputs_of_one_batch_must_be_as_long_as_each_other():
    class Two(nn.Module):
        def forward(self, x, y):
            return x + y if x.shape[0] > 2 else x - y

    traced = trace(Two(), (batch(4).float(), batch(4).float()))
    with pytest.raises(BatchSizeError, match="batches of 3, 4"):
        traced.apply(traced.params, to_jax(batch(3).float()), to_jax(batch(4).float()))


def test_an_empty_batch_is_carried():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2)).double()
    with jax.enable_x64(True):
        traced = trace(model, batch(2)[:, None])
        assert traced.apply(traced.params, to_jax(batch(0)[:, None])).shape == (0, 2)


def test_what_torch_makes_a_number_is_told_with_a_way_round_that_holds():
    def fixed(self, h, x):
        return h + torch.linspace(0, 1, x.shape[0], dtype=h.dtype)[:, None]

    def way_round(self, h, x):
        return h + (torch.arange(x.shape[0], dtype=h.dtype) / max(x.shape[0] - 1, 1))[:, None]

    with pytest.raises(TraceError, match=r"fixed to 4 .*torch\.linspace and torch\.vander do: torch\.arange does not"):
        trace(Body(fixed), batch(4).float())
    model = Body(way_round).double().eval()
    with jax.enable_x64(True):
        traced = trace(model, batch(4))
        for n in (1, 2, 4, 7):
            assert_same(model, traced, batch(n))
