"""A network that predicts its noise too, against dense float64 matrices."""

import functools

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bridge import Laplace
from tests.bridge.small import matrix

PRIOR = 1.5


@functools.cache
def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 2, generator=generator, dtype=torch.float64)
    return x, torch.randn(20, 3, generator=generator, dtype=torch.float64)


def network(outputs=6):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, outputs)).double()


def loader():
    return DataLoader(TensorDataset(*data()), batch_size=8)


@functools.cache
def fitted(structure="full"):
    how = {"hessian_structure": structure, "prior_precision": PRIOR, "progress": False}
    return Laplace(network(), "heteroscedastic_regression", **how).fit(loader())


@functools.cache
def dense():
    """Outputs, Jacobians over the parameters in torch's order, and the expected GGN."""
    model, (x, _) = network(), data()
    params = dict(model.named_parameters())
    found = torch.func.vmap(
        torch.func.jacrev(lambda p, one: torch.func.functional_call(model, p, (one[None],))[0]), (None, 0)
    )(params, x)
    rows = torch.cat([found[name].flatten(2) for name in params], dim=2).detach()
    outputs = model(x).detach()
    weights = torch.cat([torch.exp(-outputs[:, 3:]), torch.full((20, 3), 0.5)], dim=1)
    return outputs, rows, torch.einsum("bcp,bc,bcq->pq", rows, weights, rows)


@pytest.mark.parametrize("structure", ["full", "lowrank"])
def test_curvature_and_predictions_are_the_dense_ones(structure):
    la, (outputs, rows, ggn) = fitted(structure), dense()
    torch.testing.assert_close(matrix(la.H), ggn, rtol=1e-6, atol=1e-8)
    covariance = torch.linalg.inv(ggn + PRIOR * torch.eye(len(ggn), dtype=torch.float64))
    mean, found = la(data()[0])
    torch.testing.assert_close(mean, outputs)
    torch.testing.assert_close(found, rows @ covariance @ rows.mT, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("structure", ["diag", "kron", "ekfac", "kron_lowrank", "gp"])
def test_every_structure_gives_positive_variances(structure):
    how = {"n_subset": 10} if structure == "gp" else {}
    how |= {"hessian_structure": structure, "progress": False}
    la = Laplace(network(), "heteroscedastic_regression", **how).fit(loader())
    assert (la(data()[0], diagonal_output=True)[1] > 0).all()


def test_uncertainty_is_the_mean_noise_and_the_spread_of_the_mean():
    la, (x, _) = fitted(), data()
    mean, covariance = la(x)
    found = la.uncertainty(x)
    samples = la.functional_samples(x, n_samples=200_000, generator=torch.Generator().manual_seed(0))[..., 3:]
    torch.testing.assert_close(found["aleatoric_variance"], samples.exp().mean(0), rtol=0.05, atol=0.01)
    torch.testing.assert_close(found["epistemic_variance"], covariance.diagonal(dim1=-2, dim2=-1)[:, :3])
    assert found["aleatoric_variance"].shape == data()[1].shape == mean[:, :3].shape


def test_the_evidence_counts_the_whole_density():
    la, (x, y) = fitted(), data()
    mean, log_variance = network()(x).detach().chunk(2, dim=1)
    wanted = torch.distributions.Normal(mean, (log_variance / 2).exp()).log_prob(y).sum()
    torch.testing.assert_close(la.log_likelihood, wanted)
    assert np.isfinite(float(la.log_marginal_likelihood()))


def test_the_evidence_tunes_the_prior():
    la = Laplace(network(), "heteroscedastic_regression", hessian_structure="full", progress=False).fit(loader())
    before = float(la.log_marginal_likelihood())
    la.optimize_prior_precision(method="marglik")
    assert float(la.log_marginal_likelihood()) > before


def test_outputs_that_cannot_be_halved_and_targets_for_all_of_them_are_refused():
    with pytest.raises(ValueError, match="cannot be halved"):
        Laplace(network(5), "heteroscedastic_regression", progress=False).fit(loader())
    x, _ = data()
    with pytest.raises(ValueError, match=r"targets of shape \(8, 6\).*\(batch, 3\)"):
        Laplace(network(), "heteroscedastic_regression", progress=False).fit(
            DataLoader(TensorDataset(x, torch.zeros(20, 6)), batch_size=8)
        )
    with pytest.raises(ValueError, match="noise belongs to regression"):
        Laplace(network(), "heteroscedastic_regression", sigma_noise=0.3)
