"""The temperature that divides predictive logits: against the same division by hand, for every way to predict."""

import copy
import io
import pickle

import jax
import pytest
import torch
from torch import nn

import bridge
from bridge import Laplace
from bridge.tensors import to_jax, to_torch
from jax_core.predictive import link_by_name, probit
from tests.bridge.dense import fit

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3
LINKS = ["auto", "probit", "mc", "bridge", "bridge_norm", "mean_field_0", "mean_field_1", "mean_field_2"]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3))


class Divided(nn.Module):
    """A network whose logits are divided."""

    def __init__(self, model, temperature):
        super().__init__()
        self.model, self.temperature = model, temperature

    def forward(self, x):
        return self.model(x) / self.temperature


@pytest.fixture(scope="module")
def plain():
    return fit(network(), X, Y)


@pytest.fixture(scope="module")
def tempered():
    return fit(network(), X, Y, logit_temperature=2.5)


def test_the_link_is_probit_until_one_is_tuned(plain):
    mean, covariance = plain.predictive_distribution(X)
    expected = to_torch(probit(to_jax(mean), to_jax(covariance)))
    torch.testing.assert_close(plain(X), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(plain(X, link_approx="auto"), plain(X, link_approx="probit"))


@pytest.mark.parametrize("link", LINKS)
def test_every_link_sees_divided_logits(plain, tempered, link):
    mean, covariance = plain.predictive_distribution(X)
    mean_by_hand, covariance_by_hand = mean / 2.5, covariance / 2.5**2
    name = "probit" if link == "auto" else link
    by_hand = link_by_name(name, key=jax.random.key(0), num_samples=100)
    expected = to_torch(by_hand(to_jax(mean_by_hand), to_jax(covariance_by_hand)))
    # the noise of "mc" is drawn in chunks of other shapes
    tolerance = 0.1 if link == "mc" else 1e-4
    torch.testing.assert_close(tempered(X, link_approx=link), expected, rtol=tolerance, atol=tolerance)


def test_the_distribution_of_the_logits_stays_undivided(plain, tempered):
    for one, other in zip(plain.predictive_distribution(X), tempered.predictive_distribution(X), strict=True):
        assert torch.equal(one, other)


def test_sampled_logits_are_divided(plain, tempered):
    divided = fit(Divided(network(), 2.5), X, Y)
    narrow = 1e6  # the weights barely move, under either curvature
    for la in (plain, tempered, divided):
        la.prior_precision = narrow
    torch.testing.assert_close(tempered(X, pred_type="nn"), divided(X, pred_type="nn"), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(tempered(X), divided(X), rtol=1e-2, atol=1e-2)
    assert not torch.allclose(tempered(X, pred_type="nn"), plain(X, pred_type="nn"), atol=1e-2)
    for la in (plain, tempered):
        la.prior_precision = 1.0


def test_labels_are_divided_too():
    labels = torch.nn.functional.one_hot(Y, 3).float()
    one = fit(network(), X, labels, "multilabel")
    mean, covariance = one.predictive_distribution(X)
    one.logit_temperature = 0.5
    variance = covariance.diagonal(dim1=-2, dim2=-1) / 0.25
    torch.testing.assert_close(one(X), torch.sigmoid(mean / 0.5 / (1 + torch.pi / 8 * variance).sqrt()))


def test_setting_it_takes_no_new_fit_and_leaves_the_evidence(plain):
    la = copy.deepcopy(plain)
    before, evidence = la(X), la.log_marginal_likelihood()
    la.logit_temperature = torch.tensor(2.5)
    assert la.logit_temperature == 2.5
    assert la.log_marginal_likelihood() == evidence
    assert la(X).max(-1).values.mean() < before.max(-1).values.mean()
    la.logit_temperature = 1
    assert torch.equal(la(X), before)


def test_it_is_shown_only_where_it_does_something(plain, tempered):
    assert "logit_temperature=2.5" in repr(tempered)
    assert "logit_temperature" not in repr(plain)


def kept_by(way, la, tmp_path):
    new = Laplace(la.model, hessian_structure="full", progress=False)
    if way == "save":
        bridge.save(la, tmp_path / "la")
        return bridge.load(tmp_path / "la", new)
    if way == "pickle":
        return pickle.loads(pickle.dumps(la))
    if way == "copy":
        return copy.deepcopy(la)
    file = io.BytesIO()
    torch.save(la.state_dict(), file)
    file.seek(0)
    new.load_state_dict(torch.load(file))
    return new


@pytest.mark.parametrize("way", ["save", "pickle", "copy", "state dict"])
def test_it_comes_back(tempered, way, tmp_path):
    back = kept_by(way, tempered, tmp_path)
    torch.testing.assert_close(back(X), tempered(X))
    assert back.logit_temperature == 2.5


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), [1.0, 2.0], "warm"])
def test_other_values_are_refused(plain, value):
    with pytest.raises(ValueError, match="logit_temperature"):
        Laplace(network(), logit_temperature=value)
    with pytest.raises(ValueError, match="logit_temperature"):
        plain.logit_temperature = value
    assert plain.logit_temperature == 1.0


def test_a_regression_has_none():
    with pytest.raises(ValueError, match=r"Gaussian, which has no logits.*sigma_noise"):
        Laplace(network(), "regression", logit_temperature=2.0)
    assert Laplace(network(), "regression", logit_temperature=1.0).logit_temperature == 1.0
