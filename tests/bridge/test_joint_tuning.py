"""Precision and logit temperature, or precision and noise, as torch code meets them; the figures hold for ``la(x)``."""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from bridge import Laplace
from jax_core.likelihoods import Custom, Poisson
from tests.bridge.dense import fit, silent

GENERATOR = torch.Generator().manual_seed(0)


def data(n=60):
    x = torch.randn(n, 4, generator=GENERATOR)
    logits = 2 * x[:, :3] + x[:, 3:]
    y = torch.multinomial(logits.softmax(-1), 1, generator=GENERATOR).squeeze(-1)
    return x, y, logits + 0.3 * torch.randn(n, 3, generator=GENERATOR)


GRID = np.geomspace(0.1, 1e4, 9)  # the default has eight times as many
TRAIN, HELD, NEW = data(40), data(200), data(1000)
KINDS = {"classification": F.cross_entropy, "multilabel": F.binary_cross_entropy_with_logits}


def targets(split, kind):
    x, y, values = split
    return x, {"classification": y, "multilabel": (values > 0).float(), "regression": values}[kind]


def trained(kind="classification", steps=400):
    """So long on so few that it is too sure."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 3))
    x, y = targets(TRAIN, kind)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(steps):
        optimizer.zero_grad()
        (F.mse_loss(model(x), y) if kind == "regression" else KINDS[kind](model(x), y)).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module", params=["classification", "multilabel"])
def classifier(request):
    return request.param, fit(trained(request.param), *targets(TRAIN, request.param), request.param)


def loss(p, y):
    """Nats a sample."""
    if y.is_floating_point():
        return float(F.binary_cross_entropy(p, y, reduction="sum")) / len(y)
    return float(F.nll_loss(p.log(), y))


def certain(kind, logits):
    return logits.softmax(-1) if kind == "classification" else logits.sigmoid()


def test_held_out_figures_are_those_of_predictions(classifier):
    kind, la = classifier[0], copy.deepcopy(classifier[1])
    x, y = targets(HELD, kind)
    tuned = la.optimize_prior_precision(val_loader=[(x[:150], y[:150]), (x[150:], y[150:])], grid=GRID)
    report, logits = la.report(), la.model(x).detach()
    assert (la.prior_precision, la.logit_temperature) == (tuned.prior_precision, tuned.logit_temperature)
    np.testing.assert_allclose(report.chosen, loss(la(x), y), rtol=1e-3)
    np.testing.assert_allclose(report.network, loss(certain(kind, logits), y), rtol=2e-3)
    np.testing.assert_allclose(report.scaled, loss(certain(kind, logits / report.scaling_temperature), y), rtol=1e-3)
    assert report.chosen <= report.scaled <= report.network
    assert "200 held-out samples" in str(report)
    assert f"{report.chosen:.4f}" in str(report)


def test_tuned_predictions_are_better_on_new_data(classifier):
    kind, la = classifier[0], copy.deepcopy(classifier[1])
    x, y = targets(NEW, kind)
    network = loss(certain(kind, la.model(x).detach()), y)
    la.optimize_prior_precision(val_loader=[targets(HELD, kind)], grid=GRID)
    assert loss(la(x), y) < 0.9 * network
    la.optimize_prior_precision(grid=GRID)
    assert "training samples" in str(la.report())
    assert loss(la(x), y) < network


def test_samples_tell_nearly_what_tuned_predictions_tell(classifier):
    """A mean-field link under a small temperature is as good, but samples of its logits are then one-hot."""
    kind, la = classifier[0], copy.deepcopy(classifier[1])
    la.optimize_prior_precision(val_loader=[targets(HELD, kind)], grid=GRID)
    assert la.logit_temperature >= 0.25 * min(1.0, la.report().scaling_temperature)
    x, y = targets(NEW, kind)
    sampled = la.predictive_samples(x, n_samples=400).mean(0)
    assert loss(sampled, y) < 1.3 * loss(la(x), y)


def test_evidence_warns_where_its_predictions_are_worse_than_the_networks():
    la = fit(trained(), *TRAIN[:2])
    with pytest.warns(UserWarning, match=r"worse than the network's.*nats.*val_loader="):
        la.optimize_prior_precision("marglik")
    assert la.report().chosen > la.report().network


def test_evidence_does_not_warn_where_they_are_not():
    (x, y, _), (fresh, truth, _) = data(20), NEW
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200)

    def closure():
        optimizer.zero_grad()
        penalty = 0.125 * sum(p.square().sum() for p in model.parameters())
        value = F.cross_entropy(model(x), y, reduction="sum") + penalty
        value.backward()
        return value

    optimizer.step(closure)
    la = Laplace(model, "classification", "all", "full", progress=False)
    la.fit(DataLoader(TensorDataset(x, y), batch_size=len(x)))  # a few samples of them would tell either way
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        la.optimize_prior_precision("marglik")
    assert la.report().chosen < la.report().network
    assert F.nll_loss(la(fresh).log(), truth) < F.cross_entropy(model(fresh), truth)


def test_noise_of_a_regression_is_found_with_its_precision():
    x, y = targets(HELD, "regression")
    new_x, new_y = targets(NEW, "regression")

    def density(la):
        mean, variance = la(new_x, diagonal_output=True)
        return float(torch.distributions.Normal(mean, (variance + la.sigma_noise**2).sqrt()).log_prob(new_y).mean())

    la = fit(trained("regression"), *targets(TRAIN, "regression"), "regression")
    before = density(la)
    tuned = la.optimize_prior_precision(val_loader=[(x, y)], grid=GRID)
    assert la.sigma_noise == pytest.approx(tuned.sigma_noise)
    mean, variance = la(x, diagonal_output=True)
    found = -torch.distributions.Normal(mean, (variance + la.sigma_noise**2).sqrt()).log_prob(y).mean()
    np.testing.assert_allclose(la.report().chosen, float(found), rtol=1e-3)
    assert la.report().chosen <= la.report().network + 1e-9
    assert density(la) > before
    la.optimize_prior_precision()
    best = la.log_marginal_likelihood()
    for factor in (0.9, 1.1):
        for name in ("prior_precision", "sigma_noise"):
            other = copy.deepcopy(la)
            setattr(other, name, getattr(la, name) * factor)
            assert other.log_marginal_likelihood() < best


def test_noise_per_output_is_kept():
    la = fit(trained("regression"), *targets(TRAIN, "regression"), "regression", sigma_noise=[0.2, 0.3, 0.4])
    for call in (
        la.optimize_prior_precision,
        lambda: la.optimize_prior_precision(val_loader=[targets(HELD, "regression")]),
    ):
        assert call().sigma_noise is None
        assert la.sigma_noise.tolist() == pytest.approx([0.2, 0.3, 0.4])


def test_likelihoods_without_a_predictive_density_take_the_evidence_or_a_score():
    x, y, _ = TRAIN
    for likelihood in (Poisson(), Custom(lambda f, t: ((f - t) ** 2).sum())):
        la = fit(trained(), x, torch.randint(0, 5, (40, 3)).float(), likelihood)
        with pytest.raises(ValueError, match=r"no predictive density.*'marglik'.*loss="):
            la.optimize_prior_precision(val_loader=[(x, y)])
        assert "evidence" in str((silent(la.optimize_prior_precision), la.report())[1])


def test_a_report_belongs_to_what_it_reports():
    la = fit(trained(), *TRAIN[:2])
    with pytest.raises(RuntimeError, match="optimize_prior_precision"):
        la.report()
    la.optimize_prior_precision(val_loader=[HELD[:2]], grid=GRID)
    assert la.report() == copy.deepcopy(la).report()
    la.prior_precision = 3.0
    with pytest.raises(RuntimeError, match="set by hand"):
        la.report()


def test_positions_of_a_segmentation_share_a_temperature():
    torch.manual_seed(0)
    model = nn.Conv1d(2, 3, 3, padding=1)
    x, y = torch.randn(12, 2, 5), torch.randint(0, 3, (12, 5))
    y[0, :2] = -100
    la = fit(model, x, y, nn.CrossEntropyLoss())
    la.optimize_prior_precision(val_loader=[(x, y)], grid=GRID)
    expected = F.nll_loss(la(x).log(), y)
    np.testing.assert_allclose(la.report().chosen, float(expected), rtol=1e-3)
    np.testing.assert_allclose(la.report().network, float(F.cross_entropy(model(x).detach(), y)), rtol=1e-4)


def test_too_large_a_jacobian_is_refused_with_a_remedy(monkeypatch):
    la = fit(trained(), *TRAIN[:2])
    monkeypatch.setattr("bridge.joint_tuning.JACOBIAN_BYTES", 10)
    with pytest.raises(ValueError, match=r"GiB here.*'marglik'"):
        la.optimize_prior_precision(grid=GRID)
    assert isinstance(la, Laplace)


def test_without_held_out_data_the_size_of_batches_does_not_say_how_many_samples_are_looked_at():
    x, y = torch.randn(600, 4, generator=torch.Generator().manual_seed(0)), torch.arange(600) % 3
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    for batch_size in (1, 600):
        la = Laplace(model, hessian_structure="diag", progress=False)
        la.fit(DataLoader(TensorDataset(x, y), batch_size=batch_size))
        la.optimize_prior_precision()
        assert "512 training samples" in str(la.report())


def few_epochs():
    """As sure as it is right: stopped long before it knows its targets."""
    x, y, _ = MANY
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for part in torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).split(20):
        optimizer.zero_grad()
        F.cross_entropy(model(x[part]), y[part]).backward()
        optimizer.step()
    return model.eval()


MANY = data(600)


def test_what_training_has_not_followed_counts_for_no_penalty():
    x, y, _ = MANY
    passes = []

    class Counted(DataLoader):
        def __iter__(self):
            passes.append(len(self.dataset))
            return super().__iter__()

    model, found = few_epochs(), {}
    for kind, loader in {
        "again": Counted(TensorDataset(x, y), 100),
        "once": iter(zip(x.split(100), y.split(100), strict=True)),
    }.items():
        la = Laplace(model, progress=False).fit(loader)
        before = len(passes)
        la.optimize_prior_precision()
        found[kind] = la.report().network, loss(la(NEW[0]), NEW[1])
        if kind == "again":
            assert len(passes) == before + 1
            la.optimize_prior_precision()
            assert len(passes) == before + 1
    with torch.no_grad():
        new = float(F.cross_entropy(model(NEW[0]), NEW[1]))
    # without the gradient the network is expected to lose far more than it does
    assert abs(found["again"][0] - new) < 0.5 * abs(found["once"][0] - new)
    assert found["again"][1] < new * 1.01 and found["again"][1] <= found["once"][1] + 1e-4


def test_positions_of_one_sample_are_not_taken_for_many(monkeypatch):
    x = torch.randn(20, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    model = nn.Conv2d(3, 2, 1)
    la = fit(model, x, x[:, 0].gt(0).long(), nn.CrossEntropyLoss())
    monkeypatch.setattr(type(la._fit), "loss_gradient", property(lambda fit: pytest.fail("not to be read")))
    la.optimize_prior_precision()
