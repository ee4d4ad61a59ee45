"""Inputs given by name beside the first, as they were given to fit."""

import pytest
import torch
from torch import nn

from bridge import Laplace
from bridge.model_inputs import with_keywords

N = 12
VALUES, SCALE = torch.randn(N, 4, generator=torch.Generator().manual_seed(0)), torch.linspace(1, 2, N)[:, None]


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3)

    def forward(self, x, scale, shift=None):
        return self.layer(x * scale)


class Anything(Scaled):
    def forward(self, x, **named):
        return self.layer(x * named["scale"])


class ByName(Scaled):
    def forward(self, *, scale, x):
        return self.layer(x * scale)


@pytest.fixture(scope="module")
def la():
    batches = [{"x": VALUES, "scale": SCALE, "labels": torch.arange(N) % 3}]
    return Laplace(Scaled(), hessian_structure="diag", progress=False).fit(batches)


def test_a_first_input_and_others_by_name_are_the_mapping(la):
    wanted = la({"x": VALUES, "scale": SCALE})
    torch.testing.assert_close(la(VALUES, scale=SCALE), wanted)
    torch.testing.assert_close(la({"x": VALUES}, scale=SCALE), wanted)
    torch.testing.assert_close(
        la(VALUES, scale=SCALE, pred_type="nn", n_samples=2), la({"x": VALUES, "scale": SCALE}, "nn", n_samples=2)
    )
    assert not torch.allclose(la(VALUES, scale=2 * SCALE), wanted)


def test_names_find_the_places_of_a_fit_by_position():
    la = Laplace(Scaled(), hessian_structure="diag", progress=False).fit([(VALUES, SCALE, torch.arange(N) % 3)])
    wanted = la((VALUES, SCALE))
    torch.testing.assert_close(la(VALUES, scale=SCALE), wanted)
    torch.testing.assert_close(la((VALUES,), scale=SCALE), wanted)
    with pytest.raises(TypeError, match=r"no first input by name beside 'scale'.*one mapping"):
        la((VALUES, SCALE), scale=SCALE)


def test_a_name_that_forward_does_not_take_names_the_nearest(la):
    with pytest.raises(TypeError, match="Did you mean 'scale'"):
        la(VALUES, scal=SCALE)
    with pytest.raises(TypeError, match="Did you mean 'n_samples'"):
        la(VALUES, scale=SCALE, n_sample=3)


def test_forward_that_takes_any_name_is_given_it():
    assert set(with_keywords(Anything(), VALUES, {"scale": SCALE})) == {"x", "scale"}


def test_a_first_input_that_has_no_name_is_refused():
    class Positions(nn.Module):
        def forward(self, *inputs, **named):
            return inputs[0]

    with pytest.raises(TypeError, match="in one mapping"):
        with_keywords(Positions(), VALUES, {"scale": SCALE})
    with pytest.raises(TypeError, match="in one mapping"):
        with_keywords(ByName(), VALUES, {"scale": SCALE})
