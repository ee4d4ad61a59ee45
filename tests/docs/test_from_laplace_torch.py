"""The page for users of laplace-torch: a row for each of its public names and arguments."""

import enum
import functools
import inspect

import laplace
import laplace.curvature
import laplace.utils
import pytest
import torch
from laplace.baselaplace import FunctionalLaplace, ParametricLaplace

import bridge
import bridge.subnetworks
import jax_core
from bridge import Laplace
from tests.docs.pages import DOCS, path_of, quoted, rows
from tests.docs.setups import classification

PAGE = (DOCS / "how-to" / "from_laplace_torch.md").read_text()
NAMED = {name for left, _ in rows(PAGE) for name in quoted(left)}
CLASSES = [
    value
    for value in map(functools.partial(getattr, laplace), laplace.__all__)
    if inspect.isclass(value) and not issubclass(value, enum.Enum)
]


def public(names):
    return {name for name in names if not name.startswith("_")}


@pytest.mark.parametrize("module", [laplace, laplace.utils, laplace.curvature], ids=lambda m: m.__name__)
def test_every_public_name_has_a_row(module):
    assert public(module.__all__) <= NAMED


@pytest.mark.parametrize("kind", CLASSES, ids=lambda c: c.__name__)
def test_every_public_member_and_option_of_a_class_has_a_row(kind):
    assert public(dir(kind)) <= NAMED
    assert set(inspect.signature(kind.__init__).parameters) - {"self"} <= NAMED


@pytest.mark.parametrize(
    "function",
    [
        laplace.Laplace,
        laplace.marglik_training,
        ParametricLaplace.fit,
        ParametricLaplace.__call__,
        ParametricLaplace.log_prob,
        ParametricLaplace.functional_variance,
        ParametricLaplace.optimize_prior_precision,
        FunctionalLaplace.optimize_prior_precision,
    ],
    ids=lambda f: f.__qualname__,
)
def test_every_argument_has_a_row(function):
    assert set(inspect.signature(function).parameters) - {"self", "args", "kwargs"} <= NAMED


@pytest.mark.parametrize("structure", ["full", "kron", "diag"])
@pytest.mark.parametrize("subset", ["all", "last_layer"])
def test_every_public_attribute_of_a_fitted_one_has_a_row(structure, subset):
    given = classification()
    peer = laplace.Laplace(given["model"], "classification", subset, structure)
    peer.fit(given["train_loader"])
    assert public(vars(peer)) <= NAMED


def test_what_is_the_same_is_there():
    fields = {"seed", "likelihood", "model", "temperature"}
    missing = []
    arguments = {
        name
        for function in (
            Laplace.__init__,
            Laplace.fit,
            Laplace.forward,
            Laplace.optimize_prior_precision,
            Laplace.log_prob,
            Laplace.functional_variance,
            bridge.marglik_training,
        )
        for name in inspect.signature(function).parameters
    }
    for left, right in rows(PAGE):
        if right.startswith("the same"):
            missing += [n for n in quoted(left)[:1] if not hasattr(Laplace, n) and n not in arguments | fields]
    assert not missing


def test_names_of_ours_are_there():
    places = {"bridge": bridge, "jax_core": jax_core, "torch": torch, "la": Laplace}
    fitted = {"fitted"}  # a property: what it returns is looked at below
    for _, right in rows(PAGE):
        for token in quoted(right):
            first, *rest = path_of(token)
            if first in places and not fitted & set(rest):
                functools.reduce(getattr, rest, places[first])


def test_enumerations_of_laplace_torch_are_taken():
    given = classification()
    kinds = laplace.Likelihood.CLASSIFICATION, laplace.SubsetOfWeights.ALL, laplace.HessianStructure.LOWRANK
    la = Laplace(given["model"], *kinds, rank=5).fit(given["train_loader"])
    assert la.fitted.curvature.U.shape == (51, 5) and la.fitted.nll > 0
    found = la(given["x"], pred_type=laplace.PredType.GLM, link_approx=laplace.LinkApprox.PROBIT)
    assert found.shape == (5, 3)
