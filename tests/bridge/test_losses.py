"""torch's losses as likelihoods: curvature and predictions of a reference, or a refusal with its reason."""

import copy

import jax
import jax.numpy as jnp
import laplace
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from bridge import Laplace, to_likelihood
from bridge.losses import describe, logits_of_probabilities
from jax_core import Categorical, Custom
from tests.bridge.dense import fit, ggn, trace_of

pytestmark = pytest.mark.in_turns

X = torch.randn(14, 3, generator=torch.Generator().manual_seed(0))


def linear(outputs=4):
    torch.manual_seed(0)
    return nn.Linear(3, outputs)


class Sharpened(nn.CrossEntropyLoss):
    """Another loss than that of its base."""

    def forward(self, input, target):
        return super().forward(2 * input, target)


class Renamed(nn.CrossEntropyLoss):
    """The same loss."""


def test_a_subclass_with_the_forward_of_its_base_is_that_loss():
    ours, torchs = Renamed(label_smoothing=0.1), nn.CrossEntropyLoss(label_smoothing=0.1)
    assert describe(to_likelihood(ours)) == describe(to_likelihood(torchs))


def test_log_probabilities_are_normalised_logits():
    y, weight = torch.arange(14) % 4, torch.tensor([1.0, 2.0, 0.5, 1.0])
    ended = nn.Sequential(linear(), nn.LogSoftmax(-1))
    la = fit(ended, X, y, nn.NLLLoss(weight=weight), prior_precision=3.0)
    plain = fit(linear(), X, y, nn.CrossEntropyLoss(weight=weight), prior_precision=3.0)
    np.testing.assert_allclose(trace_of(la), trace_of(plain), rtol=1e-5)
    np.testing.assert_allclose(la.log_marginal_likelihood(), plain.log_marginal_likelihood(), rtol=1e-5)
    la.prior_precision = 1e9
    torch.testing.assert_close(la(X), ended(X).exp().detach())


def test_probabilities_under_bce_are_those_behind_their_logits():
    y = (torch.rand(14, 4, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    ended = nn.Sequential(linear(), nn.Sigmoid())
    la = fit(ended, X, y, nn.BCELoss(), prior_precision=3.0)
    plain = fit(linear(), X, y, nn.BCEWithLogitsLoss(), prior_precision=3.0)
    np.testing.assert_allclose(trace_of(la), trace_of(plain), rtol=1e-4)
    torch.testing.assert_close(la(X), plain(X), rtol=1e-4, atol=1e-5)
    assert bool(jnp.isfinite(logits_of_probabilities(jnp.array([0.0, 1.0]))).all())


def test_counts_have_the_curvature_of_their_loss():
    y = torch.poisson(torch.ones(14, 4), generator=torch.Generator().manual_seed(1))
    la = fit(linear(), X, y, nn.PoissonNLLLoss())
    dense = ggn(linear(), X, lambda f, i: F.poisson_nll_loss(f, y[i : i + 1].double(), reduction="sum"))
    np.testing.assert_allclose(trace_of(la), float(dense.trace()), rtol=1e-5)
    torch.testing.assert_close(la(X)[0], linear()(X).detach())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_labels_of_every_integer_type_count_alike(dtype):
    model, y = linear(200), torch.arange(14) % 100
    if dtype == torch.uint8:
        y[0] = 156  # what -100 is in an unsigned byte
    expected = fit(model, X, y, nn.CrossEntropyLoss(), "diag")
    np.testing.assert_allclose(trace_of(fit(model, X, y.to(dtype), nn.CrossEntropyLoss(), "diag")), trace_of(expected))


def test_losses_of_ones_own_take_any_target():
    def survival(f, target):  # exponential, censored: -event * f + time * exp(f)
        time, event = target
        return (-event * f + time * jnp.exp(f)).sum()

    time, event = torch.rand(14) + 0.1, (torch.rand(14) > 0.3).float()
    loader = DataLoader([(X[i], (time[i], event[i])) for i in range(14)], batch_size=5)
    la = Laplace(linear(1), Custom(survival), hessian_structure="full", progress=False).fit(loader)
    dense = ggn(linear(1), X, lambda f, i: (time[i] * f.exp() - event[i] * f).sum())
    np.testing.assert_allclose(trace_of(la), float(dense.trace()), rtol=1e-4)
    assert la(X)[0].shape == (14, 1)

    indices = Custom(lambda f, t: -jax.nn.log_softmax(f)[t])
    y = torch.arange(14) % 4
    np.testing.assert_allclose(trace_of(fit(linear(), X, y, indices)), trace_of(fit(linear(), X, y)), rtol=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reduction_is_not_looked_at(reduction):
    assert to_likelihood(nn.CrossEntropyLoss(reduction=reduction)) == to_likelihood(nn.CrossEntropyLoss())


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (nn.GaussianNLLLoss(), "two inputs.*sigma_noise"),
        (nn.HuberLoss(), "Hessian vanishes.*nn.MSELoss"),
        (nn.SmoothL1Loss(), "Hessian vanishes.*nn.MSELoss"),
        (nn.L1Loss(), "zero almost everywhere"),
        (nn.KLDivLoss(), "nn.CrossEntropyLoss, which takes probabilities"),
        (nn.PoissonNLLLoss(log_input=False), "log_input=True"),
        (nn.BCELoss(weight=torch.ones(3)), "rescales single batch elements"),
        (nn.CTCLoss(), "unknown here.*jax_core.Custom"),
        (Sharpened(), "Sharpened is an nn.CrossEntropyLoss with a forward of its own"),
    ],
)
def test_other_losses_are_refused_with_the_reason(loss, reason):
    with pytest.raises(ValueError, match=reason):
        Laplace(linear(), loss)


def test_functions_of_torchs_are_refused_for_its_modules():
    with pytest.raises(ValueError, match=r"torch's function cross_entropy.*nn\.CrossEntropyLoss.*jax\.numpy"):
        to_likelihood(F.cross_entropy)


def test_outputs_that_are_no_logits_are_met_with_a_warning():
    y = torch.arange(14) % 4
    with pytest.warns(UserWarning, match="outputs are probabilities.*NLLLoss"):
        fit(nn.Sequential(linear(), nn.Softmax(-1)), X, y)
    with pytest.warns(UserWarning, match="one output.*'multilabel'"), pytest.warns(UserWarning, match="is zero"):
        fit(linear(1), X, torch.zeros(14, dtype=torch.long))
    with pytest.warns(UserWarning, match="between 0 and 1.*BCELoss"):
        fit(nn.Sequential(linear(), nn.Sigmoid()), X, torch.ones(14, 4), "multilabel")


def test_descriptions_tell_likelihoods_apart():
    weighted = Categorical(jnp.ones(3))
    assert describe(Categorical()) != describe(weighted) != describe(Categorical(2 * jnp.ones(3)))
    assert describe(to_likelihood("regression")) == describe(to_likelihood(nn.MSELoss()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_models_in_sixteen_bits_are_worked_on_in_float32(dtype):
    model, y = linear().to(dtype), torch.arange(14) % 4
    la, wide = fit(model, X.to(dtype), y), fit(linear().to(dtype).float(), X.to(dtype).float(), y)
    np.testing.assert_allclose(trace_of(la), trace_of(wide), rtol=1e-5)
    p = la(X.to(dtype))
    assert p.dtype == dtype
    torch.testing.assert_close(p, wide(X.to(dtype).float()).to(dtype))
    assert model.weight.dtype == dtype


class Comparison(nn.Module):
    """Two logits of a pair, or the reward of one."""

    def __init__(self):
        super().__init__()
        self.reward = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        return self.reward(x.flatten(0, 1)).reshape(x.shape[0], 2) if x.ndim == 3 else self.reward(x)


def test_rewards_are_fitted_to_pairs_and_predicted_one_by_one_as_laplace_torch_does():
    from laplace import Laplace as Peer

    torch.manual_seed(0)
    model, x, y = Comparison(), torch.randn(24, 2, 3), torch.randint(2, (24,))
    la = fit(model, x, y, "reward_modeling", structure="diag")
    peer = Peer(copy.deepcopy(model), "reward_modeling", subset_of_weights="all", hessian_structure="diag")
    peer.fit(DataLoader(TensorDataset(x, y), batch_size=8))
    mean, variance = la(x[:, 0])
    torch.testing.assert_close(mean, model(x[:, 0]).detach(), rtol=1e-5, atol=1e-6)
    for ours, theirs in zip((mean, variance), peer(x[:, 0]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(la(x[:, 0])[1], variance)  # the program is kept
    np.testing.assert_allclose(la.log_marginal_likelihood(), peer.log_marginal_likelihood().detach(), rtol=1e-5)


@pytest.mark.parametrize("name", ["classification", "regression", "multilabel", "reward_modeling"])
def test_a_likelihood_is_shown_by_the_name_that_it_was_given_by(name):
    la = Laplace(linear(), name)
    assert la.likelihood == name and type(la.likelihood) is str
    with pytest.raises(AttributeError, match="Construct a Laplace with it"):
        la.likelihood = "regression"


def test_enumerations_of_laplace_torch_are_shown_as_their_names():
    assert Laplace(linear(), laplace.Likelihood.CLASSIFICATION).likelihood == "classification"
    assert type(Laplace(linear(), laplace.Likelihood.REGRESSION).likelihood) is str


def test_a_module_is_shown_as_the_likelihood_that_it_stands_for():
    assert isinstance(Laplace(linear(), nn.CrossEntropyLoss()).likelihood, Categorical)
