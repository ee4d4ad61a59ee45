"""laplace-torch's backends: which curvature they ask for, or what to use in their place."""

import warnings

import pytest
from laplace.utils.feature_extractor import FeatureReduction
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


@pytest.mark.parametrize("value", ["average", "pick_first", "pick_last", FeatureReduction.PICK_LAST])
def test_a_reduction_of_features_is_taken_with_a_note(value):
    with pytest.warns(UserWarning, match=r"feature_reduction='.*' is not needed"):
        Laplace(nn.Linear(2, 2), subset_of_weights="last_layer", feature_reduction=value)
    with pytest.raises(ValueError, match="feature_reduction='first'"):
        Laplace(nn.Linear(2, 2), feature_reduction="first")


def test_what_changes_nothing_is_taken():
    idle = {"feature_reduction": None, "independent_outputs": False, "damping": False, "asdl_fisher_kwargs": None}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Laplace(nn.Linear(2, 2), hessian_structure="gp", n_subset=3, functional_approximation="sod", **idle)
    with pytest.warns(UserWarning, match="independent_outputs=True is not needed"):
        Laplace(nn.Linear(2, 2), hessian_structure="gp", n_subset=3, independent_outputs=True)
    for name, value in (("damping", True), ("functional_approximation", "nystrom"), ("asdl_fisher_kwargs", {"a": 1})):
        with pytest.raises(TypeError, match=f"takes no {name}"):
            Laplace(nn.Linear(2, 2), **{name: value})


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
