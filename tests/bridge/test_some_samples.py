"""Posteriors in function space: against laplace-torch's Gaussian process on the same samples, in float64."""

import copy

import jax
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bridge import Laplace
from tests.bridge.dense import silent

pytestmark = pytest.mark.in_turns

X = torch.randn(30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGETS = {"regression": torch.sin(X[:, :2]), "classification": (X.sum(1) > 0).long() + (X[:, 0] > 1).long()}


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def network(likelihood):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2 if likelihood == "regression" else 3)).double()


def loader(likelihood):
    return DataLoader(TensorDataset(X, TARGETS[likelihood]), batch_size=10)


def process(likelihood, count, subset="all", **options):
    la = Laplace(network(likelihood), likelihood, subset, "gp", n_subset=count, progress=False, **options)
    return la.fit(loader(likelihood))


@pytest.mark.parametrize("subset", ["all", "last_layer"])
@pytest.mark.parametrize("count", [4, 30])
@pytest.mark.parametrize("likelihood", TARGETS)
def test_predictions_are_those_of_laplace_torchs_gaussian_process(likelihood, count, subset):
    from laplace import Laplace as Peer
    from laplace.curvature import CurvlinopsGGN

    options = {"prior_precision": 2.0, **({"sigma_noise": 0.5} if likelihood == "regression" else {})}
    ours = process(likelihood, count, subset, **options)(X[:5], "gp")
    model = network(likelihood)
    torch.set_default_dtype(torch.float64)
    try:
        peer = Peer(model, likelihood, subset, "gp", n_subset=count, backend=CurvlinopsGGN, **options)
        silent(lambda: peer.fit(loader(likelihood)))
        theirs = peer(X[:5], pred_type="gp")
    finally:
        torch.set_default_dtype(torch.float32)
    pairs = zip(ours, theirs, strict=True) if likelihood == "regression" else [(ours, theirs)]
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_precisions_are_tuned_saved_and_differentiated_in_the_users_unit():
    la = process("classification", 6)
    silent(lambda: la.optimize_prior_precision("marglik"))
    top, best = la.log_marginal_likelihood(), float(la.prior_precision)
    for factor in (0.7, 1.4):
        assert la.log_marginal_likelihood(best * factor) < top
    moving = torch.tensor(best * 2, requires_grad=True)
    slope = torch.autograd.grad(la.log_marginal_likelihood(moving), moving)[0]
    step = 1e-4 * best
    found = la.log_marginal_likelihood(best * 2 + step) - la.log_marginal_likelihood(best * 2 - step)
    torch.testing.assert_close(slope.double(), found / (2 * step), rtol=1e-4, atol=0)
    other = Laplace(copy.deepcopy(la.model), "classification", "all", "gp", n_subset=6)
    other.load_state_dict(la.state_dict())
    torch.testing.assert_close(other(X), la(X))


def test_what_does_not_go_with_a_function_space_is_refused():
    with pytest.raises(ValueError, match="needs n_subset="):
        Laplace(network("classification"), "classification", "all", "gp")
    with pytest.raises(ValueError, match="no other structure takes it"):
        Laplace(network("classification"), "classification", n_subset=3)
    with pytest.raises(ValueError, match="n_subset=31 is more than the 30 samples"):
        process("classification", 31)
    with pytest.raises(TypeError, match="Give a DataLoader"):
        Laplace(network("classification"), "classification", "all", "gp", n_subset=3).fit([(X, TARGETS["regression"])])
    plain = Laplace(network("classification"), "classification", hessian_structure="diag", progress=False)
    with pytest.raises(ValueError, match="goes with hessian_structure='gp'"):
        plain.fit(loader("classification"))(X, "gp")
