"""Searches for a prior precision, as torch code meets them, against brute force over the prior."""

import functools

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from bridge import Laplace
from jax_core import chi_squared, expected_calibration_error
from jax_core.tuning import Tuned
from tests.bridge.dense import silent

GRID = (1e-3, 0.03, 1.0, 30.0, 1e3)


def data(seed, n=40):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator)
    logits = 2 * x[:, :3] + x[:, 3:]
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)
    return x, labels, logits + torch.randn(n, 3, generator=generator)


def batches(x, y):
    return DataLoader(TensorDataset(x, y), batch_size=16)


@functools.cache
def trained():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    x, y, _ = data(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()


def fitted(likelihood="classification", **options):
    x, y, targets = data(1)
    la = Laplace(trained(), likelihood, **({"hessian_structure": "full", "progress": False} | options))
    return la.fit(batches(x, y if likelihood == "classification" else targets))


def brute_force(la, score):
    """The score at each precision of the grid, through the public setter and predictions."""
    before, scores = la.prior_precision, []
    for precision in GRID:
        la.prior_precision = precision
        scores.append(float(score(la)))
    la.prior_precision = before
    return np.array(scores)


def probabilities_of(score):
    x, y, _ = data(2)
    return lambda la: score(la(x), y)


def negative_log_likelihood(p, y):
    return nn.functional.nll_loss(p.log(), y)


def calibration_error(p, y):
    return expected_calibration_error(p.max(-1).values.numpy(), (p.argmax(-1) == y).numpy(), 15)


def brier(p, y):
    return ((p - nn.functional.one_hot(y, 3)) ** 2).sum(-1).mean()


@pytest.mark.filterwarnings("ignore:The best prior precision")
@pytest.mark.parametrize("structure", ["full", "diag", "lowrank"])
@pytest.mark.parametrize(
    ("objective", "score"),
    [
        ("nll", negative_log_likelihood),
        ("ece", calibration_error),
        (brier, brier),
        (MulticlassAccuracy(3), lambda p, y: MulticlassAccuracy(3)(p, y)),
    ],
    ids=["nll", "ece", "callable", "metric"],
)
def test_grid_search_finds_what_brute_force_finds(structure, objective, score):
    la = fitted(hessian_structure=structure, rank=10, prior_precision=7.0)
    expected = brute_force(la, probabilities_of(score))
    x, y, _ = data(2)
    tuned = la.optimize_prior_precision("gridsearch", val_loader=batches(x, y), loss=objective, grid=GRID)
    assert isinstance(tuned, Tuned)
    np.testing.assert_allclose(tuned.precisions, GRID)
    np.testing.assert_allclose(tuned.losses, expected, rtol=2e-3, atol=2e-4)
    assert tuned.prior_precision == la.prior_precision == GRID[int(expected.argmin())]
    assert tuned.loss == tuned.losses.min()
    np.testing.assert_allclose(probabilities_of(score)(la), tuned.loss, rtol=2e-3, atol=2e-4)


@pytest.mark.filterwarnings("ignore:The best prior precision")
@pytest.mark.parametrize("objective", ["chi2", "nll"])
def test_regression_scores_see_the_noise(objective):
    la = fitted("regression", sigma_noise=1.5, prior_precision=7.0)
    x, _, targets = data(2)

    def score(la):
        mean, covariance = la(x)
        deviation = (covariance.diagonal(dim1=-2, dim2=-1) + 1.5**2).sqrt()
        if objective == "chi2":
            return abs(float(chi_squared(mean.numpy(), deviation.numpy(), targets.numpy())) - 1)
        return -torch.distributions.Normal(mean, deviation).log_prob(targets).mean()

    expected = brute_force(la, score)
    tuned = la.optimize_prior_precision("gridsearch", val_loader=batches(x, targets), loss=objective, grid=GRID)
    np.testing.assert_allclose(tuned.losses, expected, rtol=2e-3, atol=1e-3)
    assert la.prior_precision == GRID[int(expected.argmin())]


@pytest.mark.filterwarnings("ignore:The best prior precision")
def test_default_grid_has_21_points_and_the_link_is_the_models():
    x, y, _ = data(2)
    tuned = fitted().optimize_prior_precision("gridsearch", val_loader=batches(x, y))
    assert tuned.precisions.shape == tuned.losses.shape == (21,)
    same, other = (
        fitted(link_approx=link).optimize_prior_precision("gridsearch", val_loader=batches(x, y)).losses
        for link in ("probit", "mean_field_2")
    )
    np.testing.assert_allclose(same, tuned.losses, rtol=1e-6)
    assert np.abs(other - same).max() > 1e-4


def test_best_precision_at_an_edge_warns_and_is_used():
    la, (x, y, _) = fitted(), data(2)
    with pytest.warns(UserWarning, match="edge of the grid"):
        tuned = la.optimize_prior_precision("gridsearch", val_loader=batches(x, y), grid=[1e-4, 1e-3])
    assert la.prior_precision == tuned.prior_precision == 1e-3


def wrong_calls():
    x, y, _ = data(2)
    loader, nan = batches(x, y), x.clone()
    nan[20] = float("nan")
    return {
        "unknown": ({"method": "grid"}, ValueError, "method='grid'.*'gridsearch'"),
        "no data": ({"method": "gridsearch"}, ValueError, "needs held-out data: val_loader"),
        "joint objective": (
            {"method": "joint", "val_loader": loader, "loss": "ece"},
            ValueError,
            "method='gridsearch'",
        ),
        "joint layers": ({"method": "joint", "prior_structure": "layerwise"}, ValueError, "method='marglik'"),
        "joint class": ({"val_loader": batches(x, y + 1)}, ValueError, "class 3"),
        "joint shape": ({"val_loader": batches(x[:, :3], y)}, ValueError, "shape"),
        "joint grid": ({"val_loader": loader, "grid": [0.0]}, ValueError, "positive"),
        "objective": ({"method": "gridsearch", "val_loader": loader, "loss": "chi2"}, ValueError, "'chi2'"),
        "bad grid": ({"method": "gridsearch", "val_loader": loader, "grid": [1.0, -1.0]}, ValueError, "positive"),
        "no loss": (
            {"method": "gridsearch", "val_loader": loader, "loss": lambda p, y: float("nan")},
            ValueError,
            "finite loss",
        ),
        "class": ({"method": "gridsearch", "val_loader": batches(x, y + 1)}, ValueError, "class 3"),
        "float": ({"method": "gridsearch", "val_loader": batches(x, y.float())}, TypeError, r"target\.long"),
        "nan": ({"method": "gridsearch", "val_loader": batches(nan, y)}, ValueError, "Batch 1.*NaN"),
        "shape": ({"method": "gridsearch", "val_loader": batches(x[:, :3], y)}, ValueError, "shape"),
        "empty": ({"method": "gridsearch", "val_loader": []}, ValueError, "empty"),
    }


@pytest.mark.usefixtures("unchecked_annotations")
def test_wrong_calls_are_refused_and_leave_the_prior_alone():
    la = fitted(prior_precision=7.0)
    x = data(2)[0]
    before = la(x)
    for arguments, error, message in wrong_calls().values():
        with pytest.raises(error, match=message):
            la.optimize_prior_precision(**arguments)
        assert la.prior_precision == 7.0
        assert torch.equal(la(x), before)


@pytest.mark.parametrize("structure", ["full", "diag", "lowrank"])
def test_one_precision_per_layer_has_the_larger_evidence(structure):
    la = fitted(hessian_structure=structure, rank=10)
    scalar = silent(lambda: la.optimize_prior_precision("marglik"))
    evidence = la.log_marginal_likelihood()
    assert isinstance(scalar.prior_precision, float)
    tuned = la.optimize_prior_precision(prior_structure="layerwise")
    assert np.shape(la.prior_precision) == (4,)
    assert tuned.precisions.shape == (201, 4)
    np.testing.assert_allclose(tuned.losses[0], scalar.loss, rtol=1e-4)
    assert la.log_marginal_likelihood() > evidence
    np.testing.assert_allclose(la.log_marginal_likelihood() - evidence, scalar.loss - tuned.loss, rtol=1e-2)
    best = la.prior_precision.numpy()
    for layer in range(4):
        for factor in (0.5, 2.0):
            la.prior_precision = best * np.where(np.arange(4) == layer, factor, 1.0)
            assert la.log_marginal_likelihood() < evidence + scalar.loss - tuned.loss + 1e-3


@pytest.mark.parametrize("prior", ["scalar", "layerwise", "diag"])
def test_gradient_ascent_ends_where_laplace_torchs_does(prior, peer_marglik):
    la = fitted()
    start = {"init_prior_prec": 2.0, "n_steps": 30, "lr": 0.2, "prior_structure": prior}
    tuned = silent(lambda: la.optimize_prior_precision("glm", "marglik", **start))
    np.testing.assert_allclose(la.prior_precision.numpy(), peer_marglik(prior, start), rtol=2e-3)
    assert tuned.losses[-1] == tuned.loss


@pytest.fixture
def peer_marglik():
    """The precisions that laplace-torch's own ascent ends at."""
    from laplace import Laplace as Peer

    def ends(prior, start):
        x, y, _ = data(1)
        peer = Peer(trained(), "classification", subset_of_weights="all", hessian_structure="full")
        peer.fit(DataLoader(TensorDataset(x, y), batch_size=10))
        silent(lambda: peer.optimize_prior_precision(pred_type="glm", method="marglik", **start))
        return peer.prior_precision.detach().numpy().reshape(() if prior == "scalar" else -1)

    return ends


@pytest.mark.filterwarnings("ignore:The best prior precision")
def test_grid_search_scores_networks_at_sampled_weights_where_those_predict():
    la, (x, y, _) = fitted(n_samples=30), data(2)
    tuned = la.optimize_prior_precision("nn", "gridsearch", val_loader=batches(x, y), grid=[10.0, 1000.0])
    for precision, found in zip(tuned.precisions, tuned.losses, strict=True):
        la.prior_precision = precision
        assert found == pytest.approx(float(negative_log_likelihood(la(x, "nn"), y)), rel=1e-4)


@pytest.mark.filterwarnings("ignore:The best prior precision")
def test_the_grid_can_be_given_by_the_exponents_of_its_ends():
    la, (x, y, _) = fitted(), data(2)
    ends = {"log_prior_prec_min": -1, "log_prior_prec_max": 2, "grid_size": 4}
    tuned = la.optimize_prior_precision(method="gridsearch", val_loader=batches(x, y), **ends)
    np.testing.assert_allclose(tuned.precisions, [0.1, 1.0, 10.0, 100.0])


IDLE = {
    "held-out data": ({"method": "marglik", "val_loader": []}, "does not look at val_loader.*'gridsearch'"),
    "a grid": ({"method": "gradient", "grid_size": 3}, "does not look at grid"),
    "steps": (
        {"method": "gridsearch", "n_steps": 10, "lr": 0.1, "init_prior_prec": torch.ones(4)},
        "does not look at n_steps, lr, init_prior_prec.*'marglik'",
    ),
    "layers": ({"method": "gridsearch", "prior_structure": "layerwise"}, "does not look at prior_structure"),
}


@pytest.mark.parametrize("case", IDLE)
@pytest.mark.filterwarnings("ignore:The best prior precision", "ignore:The evidence")
def test_what_laplace_torchs_methods_do_not_look_at_changes_nothing_and_is_named(case):
    given, told = IDLE[case]
    held = {"val_loader": batches(*data(2)[:2])} if given["method"] == "gridsearch" else {}
    la = fitted()
    with pytest.warns(UserWarning, match=told):
        found = la.optimize_prior_precision(**(held | given))
    alone = la.optimize_prior_precision(given["method"], **held)
    assert found.prior_precision == alone.prior_precision
