"""Equal elements put in order: the results are torch's where no order changes them, else the model is refused."""

import jax
import pytest
import torch

from bridge.tracing import TraceError, trace
from tests.bridge.tracing.bodies import Body, assert_same, batch

pytestmark = pytest.mark.in_turns


def twice(h):
    """Every element with an equal one beside it."""
    return torch.column_stack([h, h])


def places(pair):
    return pair[0] + 0.1 * pair[1]


OPEN = {
    "smallest": lambda self, h, x: places(twice(h).topk(3, -1, largest=False)),
    "largest of zeros": lambda self, h, x: places(torch.relu(h - 10).topk(3, -1)),
    "sorted": lambda self, h, x: places(twice(h).sort(-1))[:, :3],
    "sorted downwards": lambda self, h, x: places(torch.sort(twice(h), 1, descending=True))[:, 3:],
    "places alone": lambda self, h, x: h * twice(h).argsort(-1)[:, :3],
    "over the batch": lambda self, h, x: h + torch.cat([h, h]).argsort(0)[: x.shape[0]],
    "infinities": lambda self, h, x: h * h.masked_fill(h < 10, -torch.inf).argsort(-1),
}

CLOSED = {
    "values alone": lambda self, h, x: twice(h).topk(3, -1)[0],
    "values in order": lambda self, h, x: twice(h).sort(1, descending=True).values[:, :3],
    "a stable order": lambda self, h, x: places(twice(h).sort(dim=-1, stable=True))[:, :3],
    "a stable order downwards": lambda self, h, x: places(twice(h).sort(dim=-1, stable=True, descending=True))[:, :3],
    "places of equals, gathered": lambda self, h, x: twice(h).gather(1, twice(h).argsort(1))[:, :3],
    "below the cut": lambda self, h, x: (
        h + places(torch.cat([h, h[:, :1] * 0 - 9, h[:, :1] * 0 - 9], 1).topk(2))[:, :1]
    ),
    "no ties": lambda self, h, x: places(h.topk(3, -1)),
    "one element": lambda self, h, x: h + places(h[:, :1].topk(1)),
}


@pytest.mark.parametrize("name", OPEN)
def test_an_order_of_equals_that_changes_the_results_is_refused_with_its_line_and_a_remedy(name):
    wanted = r"orders equal elements, by aten\.\w+\.default, .*test_ties\.py, line"
    with jax.enable_x64(True), pytest.raises(TraceError, match=wanted) as refusal:
        trace(Body(OPEN[name]).double(), batch(4))
    assert "stable=True" in str(refusal.value)


@pytest.mark.parametrize("name", CLOSED)
def test_an_order_of_equals_that_changes_nothing_is_carried(name):
    model = Body(CLOSED[name]).double().eval()
    with jax.enable_x64(True):
        traced = trace(model, batch(4))
        for n in (1, 2, 4, 7):
            assert_same(model, traced, batch(n))


def test_whoever_compares_with_nothing_keeps_torchs_choice_open():
    with jax.enable_x64(True):
        trace(Body(OPEN["smallest"]).double(), batch(4), verify=False)
