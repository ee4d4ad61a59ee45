"""Which traced functions are taken for one another."""

import jax
import pytest
import torch
from torch import nn

from bridge import trace
from bridge.tracing.known import Known, described


class Scaled(nn.Module):
    def __init__(self, factor=2.0, power=2):
        super().__init__()
        self.layer, self.factor, self.power = nn.Linear(3, 2), factor, power

    def forward(self, x):
        return (self.layer(x) * self.factor) ** self.power


def traced(module, inputs=None):
    return trace(module.eval(), torch.randn(4, 3) if inputs is None else inputs)


def test_traces_of_one_architecture_are_one_program():
    first, second = traced(Scaled()), traced(Scaled())
    assert first.function == second.function and first.function is not second.function
    count = []

    @jax.jit
    def run(traced, x):
        count.append(1)
        return traced.apply(traced.params, x)

    x = jax.numpy.ones((2, 3))
    one, two = run(first, x), run(second, x)
    assert len(count) == 1 and not (one == two).any()
    torch.testing.assert_close(torch.tensor(two.tolist()), torch.tensor(second.apply(second.params, x).tolist()))


def frozen():
    module = Scaled()
    module.layer.bias.requires_grad_(False)
    return module


OTHERS = {
    "another constant": lambda: Scaled(factor=2.5),
    "an integer in the place of a number": lambda: Scaled(power=2.0),
    "another operator": lambda: nn.Sequential(nn.Linear(3, 2), nn.Tanh()),
    "other names": lambda: nn.Sequential(Scaled()),
    "another shape of weights in a reshape": lambda: nn.Sequential(nn.Linear(3, 4), nn.Unflatten(1, (2, 2))),
    "a frozen parameter": frozen,
}


@pytest.mark.parametrize("other", OTHERS)
def test_whatever_differs_in_the_graph_makes_another_program(other):
    assert traced(Scaled()).function != traced(OTHERS[other]()).function


def test_shapes_of_one_architecture_differ_in_their_arrays_or_in_their_graph():
    wide, narrow = (nn.Sequential(nn.Linear(3, n), nn.Unflatten(1, (n // 2, 2))) for n in (4, 6))
    assert traced(wide).function != traced(narrow).function


def test_inputs_of_another_structure_make_another_program():
    class Summed(nn.Module):
        def forward(self, x):
            return x["a"] + x["b"] if isinstance(x, dict) else x[0] + x[1]

    a, b = torch.randn(4, 3), torch.randn(4, 3)
    assert traced(Summed(), ({"a": a, "b": b},)).function != traced(Summed(), ([a, b],)).function


def test_what_cannot_be_told_is_equal_to_itself_alone():
    assert described(object()) is None and described(Known(len, None)) is None
    known = Known(len, None)
    assert known == known and known != Known(len, None) and len({known, Known(len, None)}) == 2
    assert described(1) != described(True) != described(1.0) and described(0.0) != described(-0.0)
