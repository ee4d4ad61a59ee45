"""Densities that training uses: the prior's before a fit, the posterior's while the weights move on from it."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.bridge.small import data, fitted, loader, make, matrix, own

pytestmark = pytest.mark.usefixtures("x64")


NEED_A_FIT = (
    *("posterior_covariance", "posterior_scale", "posterior_variance", "log_likelihood", "n_outputs", "n_data"),
    *("posterior", "plan", "fitted"),
)


PRIORS = (0.7, np.linspace(0.5, 2.0, 43))


@pytest.mark.parametrize("name", NEED_A_FIT)
def test_what_needs_data_says_so_before_fit(name):
    with pytest.raises(RuntimeError, match=r"Call fit\(train_loader\) first"):
        getattr(make(), name)


@pytest.mark.parametrize("structure", ["full", "kron", "diag", "lowrank"])
@pytest.mark.parametrize("prior", PRIORS, ids=["one", "each"])
def test_before_fit_the_density_is_the_priors(structure, prior):
    prior = 0.7 if structure == "kron" else prior
    centre = torch.linspace(-1, 1, 43)
    la = make(structure, prior_precision=prior, prior_mean=centre)
    precisions = torch.as_tensor(prior, dtype=torch.float64).expand(43)
    density = torch.distributions.Normal(centre, precisions.rsqrt())
    value = torch.randn(5, 43, dtype=torch.float64)
    torch.testing.assert_close(la.mean, centre.double())
    torch.testing.assert_close(la.log_prob(value), density.log_prob(value).sum(-1))
    torch.testing.assert_close(matrix(la.posterior_precision), precisions.diag())
    torch.testing.assert_close(la.prior_precision_diag, precisions)
    torch.testing.assert_close(la.log_det_posterior_precision, precisions.log().sum())
    assert la.scatter == 0 and not matrix(la.H).any()


def test_torch_differentiates_densities_by_the_weights():
    la = fitted("full")
    value = (la.mean + 0.1).requires_grad_()
    density = torch.distributions.MultivariateNormal(la.mean, precision_matrix=matrix(la.posterior_precision))
    for ours, theirs in (
        (la.log_prob(value), density.log_prob(value)),
        (-la.square_norm(value) / 2, density.log_prob(value)),
    ):
        slopes = [torch.autograd.grad(x, value, retain_graph=True)[0] for x in (ours, theirs)]
        torch.testing.assert_close(*slopes, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("structure", ["full", "kron", "diag", "lowrank"])
def test_the_density_stays_while_the_weights_move(structure):
    la = own(fitted(structure))
    value = torch.randn(43, dtype=torch.float64)
    before = (la.mean, la.log_prob(value), matrix(la.posterior_precision), matrix(la.H), la.scatter)
    with torch.no_grad():
        la.model[0].weight.add_(1.0)
    after = (la.mean, la.log_prob(value), matrix(la.posterior_precision), matrix(la.H), la.scatter)
    assert all(map(torch.equal, before, after))
    for refused in (lambda: la(data()[0]), la.log_marginal_likelihood, la.sample):
        with pytest.raises(RuntimeError, match="weights have changed since fit"):
            refused()


def test_around_a_subnetwork_other_weights_must_not_move():
    la = own(fitted("diag", "subnetwork"))
    with torch.no_grad():
        la.model[0].weight.add_(1.0)
    with pytest.raises(RuntimeError, match="weights have changed since fit"):
        _ = la.mean


def test_continual_training_sums_the_tasks_up():
    """The prior of a task is the density of those before; its own precision is tuned on the evidence."""
    la = make("diag", prior_precision=1e-2)
    optimizer = torch.optim.Adam(la.model.parameters(), lr=1e-2)
    exponent = torch.full((1,), -4.0, dtype=torch.float64, requires_grad=True)
    seen = torch.zeros(43, dtype=torch.float64)
    for part in (slice(15), slice(15, 30)):
        task = loader(part=part)
        before = la.H.clone()
        for x, y in task:
            weights = nn.utils.parameters_to_vector(la.model.parameters())
            loss = nn.functional.cross_entropy(la.model(x), y) - la.log_prob(weights) / 15
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        trial = type(la)(
            *(la.model, "classification", "all", "diag"),
            prior_mean=la.mean,
            prior_precision=la.posterior_precision,
            progress=False,
        ).fit(task)
        trial.log_marginal_likelihood(exponent.exp() + before).backward()
        assert torch.isfinite(exponent.grad) and exponent.grad != 0
        la.prior_precision = exponent.exp().detach()
        la.fit(task, override=False)
        seen += trial.H
        torch.testing.assert_close(la.H, seen)
    torch.testing.assert_close(la.posterior_precision, seen + exponent.exp().detach())
