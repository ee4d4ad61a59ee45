"""The Gaussian over weights: every structure over every subset, against dense float64 matrices and laplace-torch."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bridge.weight_matrix
from bridge import Laplace
from tests.bridge.small import (
    CASES,
    COVERED,
    INDICES,
    PRIOR,
    data,
    dense_ggn,
    fitted,
    jacobians,
    loader,
    make,
    matrix,
    network,
    own,
)

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.in_turns]
every = pytest.mark.parametrize(("structure", "subset"), CASES, ids=str)


def identity(n):
    return torch.eye(n, dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@every
def test_precision_and_covariance_are_inverse_and_their_diagonals_their_own(structure, subset):
    la, n = fitted(structure, subset), len(COVERED[subset])
    precision, covariance = matrix(la.posterior_precision), la.posterior_covariance
    torch.testing.assert_close(precision @ covariance, identity(n), rtol=0, atol=1e-9)
    torch.testing.assert_close(covariance.diagonal(), la.posterior_variance)
    scale = la.posterior_scale
    torch.testing.assert_close(torch.diag(scale**2) if structure == "diag" else scale @ scale.T, covariance)


@pytest.mark.parametrize("subset", COVERED, ids=str)
@pytest.mark.parametrize("structure", ["full", "lowrank", "diag"])
def test_precision_is_the_dense_curvature_and_the_prior(structure, subset):
    places = list(COVERED[subset])
    wanted = dense_ggn()[places][:, places] + PRIOR * identity(len(places))
    wanted = torch.diag(wanted.diagonal()) if structure == "diag" else wanted
    torch.testing.assert_close(matrix(fitted(structure, subset).posterior_precision), wanted, rtol=1e-6, atol=1e-8)


@every
def test_log_determinants_are_those_of_the_matrices(structure, subset):
    la = fitted(structure, subset)
    wanted = torch.logdet(matrix(la.posterior_precision))
    torch.testing.assert_close(la.log_det_posterior_precision, wanted)
    prior = len(COVERED[subset]) * math.log(PRIOR)
    torch.testing.assert_close(float(la.log_det_prior_precision), prior)
    torch.testing.assert_close(float(la.log_det_ratio), float(wanted) - prior)
    torch.testing.assert_close(la.prior_precision_diag, torch.full((len(COVERED[subset]),), PRIOR).double())


@every
def test_density_is_torchs_multivariate_normal(structure, subset):
    la, places = fitted(structure, subset), list(COVERED[subset])
    centre = flat(network())[places]
    values = centre + 0.3 * torch.randn(2, 3, len(places), generator=generator(), dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(centre, precision_matrix=matrix(la.posterior_precision))
    torch.testing.assert_close(la.log_prob(values), normal.log_prob(values), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(la.log_prob(values, normalized=False), -la.square_norm(values) / 2)
    torch.testing.assert_close(la.log_prob(values[0, 0]), la.log_prob(values)[0, 0])


@every
def test_samples_have_the_posterior_moments_and_other_weights_stay(structure, subset):
    la, places = fitted(structure, subset), list(COVERED[subset])
    drawn = la.sample(6000, generator=generator())
    if subset == "subnetwork":
        assert drawn.shape == (6000, 43)
        others = [i for i in range(43) if i not in INDICES]
        assert torch.equal(drawn[:, others], flat(network())[others].expand(6000, -1))
        drawn = drawn[:, places]
    root = torch.linalg.cholesky(matrix(la.posterior_precision))
    white = (drawn - flat(network())[places]) @ root
    assert white.mean(0).abs().max() < 5 / 6000**0.5
    assert (white.T @ white / 6000 - identity(len(places))).abs().max() < 0.09


@every
def test_jacobians_are_pushed_to_the_linearised_predictive(structure, subset):
    la, x = fitted(structure, subset), torch.randn(3, 4, generator=generator(), dtype=torch.float64)
    rows, covariance = jacobians(x)[..., list(COVERED[subset])], la.posterior_covariance
    torch.testing.assert_close(la.functional_variance(rows), rows @ covariance @ rows.mT)
    torch.testing.assert_close(la.functional_variance(rows), la.predictive_distribution(x)[1])
    together = rows.reshape(9, -1)
    torch.testing.assert_close(la.functional_covariance(rows), together @ covariance @ together.T)
    torch.testing.assert_close(la.functional_covariance(rows), la.functional_covariance(together))


@every
def test_counts_are_those_of_model_and_data(structure, subset):
    la = fitted(structure, subset)
    assert la.n_params == len(la.mean) == (43 if subset == "subnetwork" else len(COVERED[subset]))
    assert (la.n_params_subnet, la.n_outputs, la.n_data) == (len(COVERED[subset]), 3, 30)
    assert la.n_layers == {"all": 4, "subnetwork": 1}.get(subset, 2)
    torch.testing.assert_close(la.mean, flat(network())[range(43) if subset == "subnetwork" else COVERED[subset]])


@pytest.mark.usefixtures("unchecked_annotations")
def test_a_generator_repeats_its_samples_and_without_one_torchs_seed_does():
    la = fitted()
    assert torch.equal(la.sample(4, generator=generator(3)), la.sample(4, generator=generator(3)))
    assert not torch.equal(la.sample(4, generator=generator(3)), la.sample(4, generator=generator(4)))
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        found.append(la.sample(4))
    assert torch.equal(*found) and not torch.equal(found[0], la.sample(4))
    with pytest.raises(TypeError, match=r"Give a torch\.Generator"):
        la.sample(4, generator=0)
    with pytest.raises(ValueError, match="n_samples=0"):
        la.sample(0)


@pytest.mark.parametrize("structure", ["full", "diag", "kron", "lowrank"])
def test_temperature_and_noise_scale_the_curvature_and_not_the_prior(structure):
    la = own(fitted(structure, likelihood="regression"))
    la.sigma_noise = 1.0
    curvature = matrix(la.posterior_precision) - PRIOR * identity(43)
    la.sigma_noise, la.temperature = 0.5, 3.0
    torch.testing.assert_close(matrix(la.posterior_precision), curvature / 0.75 + PRIOR * identity(43))


def test_scatter_and_log_likelihood_are_their_sums_over_weights_and_data():
    la = own(fitted())
    la.prior_mean, la.prior_precision = torch.linspace(-1, 1, 43), torch.linspace(1, 9, 43)
    offset = flat(network()) - torch.linspace(-1, 1, 43)
    torch.testing.assert_close(la.scatter, (torch.linspace(1, 9, 43) * offset**2).sum())
    x, y = loader().dataset.tensors
    torch.testing.assert_close(la.log_likelihood, -nn.CrossEntropyLoss(reduction="sum")(network()(x), y).detach())
    total = la.log_likelihood - 0.5 * (la.log_det_ratio + la.scatter)
    torch.testing.assert_close(la.log_marginal_likelihood(), total)


def test_regressions_log_likelihood_is_torchs_normal():
    la = fitted(likelihood="regression")
    x, y = loader("regression").dataset.tensors
    wanted = torch.distributions.Normal(network()(x), 0.7).log_prob(y).sum().detach()
    torch.testing.assert_close(la.log_likelihood, wanted)


@pytest.fixture
def torch64():
    """laplace-torch computes partly in torch's default dtype, whatever the model's is."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("subset", ["all", "last_layer"])
@pytest.mark.parametrize("structure", ["full", "diag", "kron"])
def test_what_laplace_torch_says_of_weights_is_said_here(torch64, structure, subset):
    from laplace import Laplace as Peer
    from laplace.curvature import CurvlinopsGGN

    backend = {"backend": CurvlinopsGGN} | ({} if subset == "all" else {"last_layer_name": "2"})
    peer = Peer(network(), "classification", subset, structure, prior_precision=PRIOR, **backend)
    peer.fit(loader())
    la = fitted(structure, subset)
    theirs = peer.posterior_precision
    torch.testing.assert_close(matrix(la.posterior_precision), matrix(theirs), rtol=1e-6, atol=1e-8)
    for name in ("log_det_ratio", "log_det_posterior_precision", "scatter", "log_likelihood"):
        wanted = getattr(peer, name)
        torch.testing.assert_close(
            getattr(la, name), torch.as_tensor(wanted).reshape(()).detach(), rtol=1e-6, atol=1e-8
        )
    value = flat(network())[list(COVERED[subset])] + 0.1
    if structure != "kron":  # whose log_prob laplace-torch does not compute
        wanted = peer.log_prob(value).reshape(()).detach()
        torch.testing.assert_close(la.log_prob(value), wanted, rtol=1e-6, atol=1e-8)


class Tied(nn.Module):
    """Weights that are tied, a normalisation with running statistics, and one parameter that stays fixed."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.second.bias.requires_grad_(False)

    def forward(self, x):
        return self.second(self.norm(self.first(x)).tanh())


def test_state_dicts_of_samples_load_with_tied_weights_and_buffers():
    torch.manual_seed(0)
    model = Tied().double()
    model(torch.randn(30, 4, dtype=torch.float64))
    model.eval()
    x = torch.randn(12, 4, generator=generator(), dtype=torch.float64)
    la = Laplace(model, hessian_structure="diag", prior_precision=5.0, progress=False)
    la.fit(DataLoader(TensorDataset(x, torch.arange(12) % 4), batch_size=6))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    states, samples = la.samples_as_state_dicts(3, generator()), la.sample(3, generator())
    for state, sample in zip(states, samples, strict=True):
        other = Tied().double().eval()
        other.load_state_dict(state)
        trained = torch.cat([p.detach().flatten() for p in other.parameters() if p.requires_grad])
        torch.testing.assert_close(trained, sample)
        assert torch.equal(state["second.weight"], state["first.weight"])
        for fixed in ("second.bias", "norm.running_mean", "norm.num_batches_tracked"):
            assert torch.equal(state[fixed], before[fixed])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("subset", ["last_layer", ("0",), "subnetwork"], ids=str)
def test_state_dicts_of_samples_hold_the_models_own_weights_elsewhere(subset):
    la, places = fitted("diag", subset), set(COVERED[subset])
    own_weights = flat(network())
    for state in la.samples_as_state_dicts(2, generator()):
        drawn = torch.cat([state[name].flatten() for name, _ in network().named_parameters()])
        assert {i for i in range(43) if drawn[i] != own_weights[i]} == places


def test_a_subnetworks_samples_have_a_density():
    la = fitted("full", "subnetwork")
    whole = la.sample(3, generator())
    torch.testing.assert_close(la.log_prob(whole), la.log_prob(whole[:, list(INDICES)]))


@pytest.mark.parametrize("call", ["square_norm", "log_prob", "functional_variance", "functional_covariance"])
@pytest.mark.parametrize("value", [torch.zeros(42), torch.zeros(()), [0.0] * 43], ids=["short", "scalar", "list"])
@pytest.mark.usefixtures("unchecked_annotations")
def test_vectors_over_other_weights_are_refused_with_their_number(call, value):
    with pytest.raises(ValueError, match="43 weights"):
        getattr(fitted(), call)(value)


@pytest.mark.parametrize(("structure", "subset"), CASES, ids=str)
def test_the_curvature_is_the_precision_without_the_prior(structure, subset):
    la = own(fitted(structure, subset, likelihood="regression"))
    la.sigma_noise, la.temperature = 0.3, 2.0
    prior = la.prior_precision_diag.diag()
    torch.testing.assert_close((matrix(la.posterior_precision) - prior) * 0.18, matrix(la.H), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("likelihood", ["classification", "regression"])
def test_the_loss_is_the_networks_on_the_training_data(likelihood):
    x, y = data(likelihood)
    measure = {"classification": nn.CrossEntropyLoss, "regression": nn.MSELoss}[likelihood](reduction="sum")
    wanted = measure(network()(x), y).detach() * (0.5 if likelihood == "regression" else 1.0)
    torch.testing.assert_close(fitted("kron", likelihood=likelihood).loss, wanted)
    assert make().loss == 0.0


def test_a_low_rank_precision_unpacks_into_its_parts():
    la = own(fitted("lowrank"))
    for la.prior_precision in (0.7, np.linspace(0.5, 2.0, 43)):
        (vectors, values), prior = la.posterior_precision
        torch.testing.assert_close(vectors @ values.diag() @ vectors.T + prior.diag(), matrix(la.posterior_precision))
    with pytest.raises(TypeError, match="no low rank"):
        (_, _), _ = fitted("kron").posterior_precision


def test_a_matrix_too_large_names_what_does_without_it(monkeypatch):
    monkeypatch.setattr(bridge.weight_matrix, "_DENSE_BYTES", 8 * 42**2)
    with pytest.raises(ValueError, match=r"43 weights.*posterior_variance"):
        _ = fitted().posterior_covariance
    with pytest.raises(ValueError, match=r"matrix @ vector"):
        fitted("kron").posterior_precision.to_matrix()


def test_evidence_without_new_values_leaves_the_old_ones_and_with_them_sets_them():
    la = own(fitted(likelihood="regression"))
    at_once = la.log_marginal_likelihood(5.0, 0.4)
    assert (float(la.prior_precision), float(la.sigma_noise)) == (5.0, 0.4)
    np.testing.assert_allclose(at_once, la.log_marginal_likelihood())
    with pytest.raises(ValueError, match="sigma_noise belongs to regression"):
        own(fitted()).log_marginal_likelihood(sigma_noise=0.4)
