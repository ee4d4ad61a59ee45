"""laplace-torch's backends: which curvature they ask for, or what to use in their place."""

import warnings

import pytest
from torch import nn

from bridge import Laplace
from bridge.peer_options import curvature_of


def named(name):
    return type(name, (), {})


BACKENDS = {
    "CurvlinopsGGN": "ggn",
    "BackPackGGN": "ggn",
    "AsdlGGN": "ggn",
    "CurvlinopsEF": "empirical_fisher",
    "BackPackEF": "empirical_fisher",
    "AsdlEF": "empirical_fisher",
    "MyFisher": "mc_fisher",
}


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_asks_for_its_curvature_and_is_told_to_be_unused(name):
    with pytest.warns(UserWarning, match=f"backend={name} is read as curvature='{BACKENDS[name]}'"):
        assert curvature_of(None, named(name)) == BACKENDS[name]
    with pytest.warns(UserWarning, match="not used"):
        assert Laplace(nn.Linear(2, 2), backend=named(name)).options.curvature == BACKENDS[name]


def test_laplace_torchs_own_backends_are_read():
    from laplace import curvature

    for name in ("CurvlinopsGGN", "CurvlinopsEF", "BackPackGGN", "BackPackEF", "AsdlGGN", "AsdlEF"):
        with pytest.warns(UserWarning, match="not used"):
            assert curvature_of(None, getattr(curvature, name)) == BACKENDS[name]


def test_without_a_backend_nothing_is_said():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert curvature_of(None, None) == "ggn"
        assert curvature_of("mc_fisher", None, {}) == "mc_fisher"
        assert curvature_of(None, None, {"stochastic": True}) == "mc_fisher"
        assert curvature_of(None, None, {"stochastic": False}) == "ggn"


def test_a_stochastic_backend_draws():
    with pytest.warns(UserWarning, match="not used"):
        assert curvature_of(None, named("CurvlinopsGGN"), {"stochastic": True}) == "mc_fisher"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ((None, named("CurvlinopsHessian")), "choose with curvature='ggn'"),
        ((None, named("CurvlinopsGGN"), {"num_samples": 3}), r"\['num_samples'\].*have no meaning"),
        (("empirical_fisher", named("CurvlinopsGGN")), "Give one of them"),
        (("ggn", None, {"stochastic": True}), "Give one of them"),
    ],
)
@pytest.mark.filterwarnings("ignore:backend")
def test_what_stands_for_no_curvature_is_refused(given, told):
    with pytest.raises(ValueError, match=told):
        curvature_of(*given)
