"""Predictions, their samples and their uncertainty, by what must hold between them and by laplace-torch."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bridge import Laplace, predictives
from tests.bridge.dense import silent
from tests.bridge.small import CASES, COVERED, NOISE, data, dense_ggn, fitted, jacobians, loader, make, network, own

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.in_turns]
LIKELIHOODS = ("classification", "regression", "multilabel")


def new(n=3):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("structure", "subset"), CASES, ids=str)
def test_samples_of_the_linearised_outputs_have_the_predictive_moments(structure, subset):
    la, x = fitted(structure, subset), new()
    mean, covariance = la.predictive_distribution(x)
    drawn = la.functional_samples(x, n_samples=6000, generator=generator())
    assert drawn.shape == (6000, 3, 3)
    white = torch.einsum("bij,sbj->sbi", torch.linalg.inv(torch.linalg.cholesky(covariance)), drawn - mean)
    assert white.mean(0).abs().max() < 5 / 6000**0.5
    found = torch.einsum("sbi,sbj->bij", white, white) / 6000
    assert (found - torch.eye(3, dtype=torch.float64)).abs().max() < 0.09


@pytest.mark.parametrize("subset", ["all", "last_layer", ("0",), "subnetwork"], ids=str)
def test_jacobians_are_torchs_in_the_order_of_parameters(subset):
    la, x = fitted("diag", subset), new()
    rows, outputs = la.jacobians(x)
    torch.testing.assert_close(rows, jacobians(x)[..., list(COVERED[subset])])
    torch.testing.assert_close(outputs, network()(x).detach())
    for found in (la.backend.jacobians(x), la.backend.last_layer_jacobians(x)):
        torch.testing.assert_close(found, (rows, outputs))
    with pytest.raises(ValueError, match="enable_backprop=True"):
        la.backend.jacobians(x, enable_backprop=True)


def test_jacobians_of_images_are_over_their_outputs_as_the_model_flattens_them(images):
    la, x = images
    model = la.model
    rows, outputs = la.jacobians(x)
    torch.testing.assert_close(outputs, model(x).detach())
    wanted = torch.autograd.grad(model(x)[1].reshape(-1)[7], list(model.parameters()))
    torch.testing.assert_close(rows[1, 7], torch.cat([part.reshape(-1) for part in wanted]))


def test_jacobians_too_large_name_what_does_without_them(monkeypatch):
    monkeypatch.setattr(predictives, "_ROWS_BYTES", 1000)
    with pytest.raises(ValueError, match=r"3 outputs of 3 samples.*predictive_distribution"):
        fitted().jacobians(new())


@pytest.mark.parametrize("likelihood", ["classification", "regression"])
def test_laplace_torchs_other_names_give_the_same(likelihood):
    la, x = fitted("kron", likelihood=likelihood), new()
    mean, covariance = la.predictive_distribution(x)
    torch.testing.assert_close(la._glm_predictive_distribution(x), (mean, covariance))
    variances = covariance.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(la._glm_predictive_distribution(x, diagonal_output=True), (mean, variances))
    torch.testing.assert_close(la.functional_variance_fast(x), (mean, variances))
    both, joint = la._glm_predictive_distribution(x, joint=True)
    torch.testing.assert_close(both, mean.flatten())
    torch.testing.assert_close(joint, la.predictive_distribution(x, joint=True)[1].reshape(9, 9))
    torch.testing.assert_close(la.predictive(x, "glm", "probit", 10), la(x, link_approx="probit"))


def test_diagonal_output_leaves_out_how_outputs_vary_together():
    la, x = fitted(), new(1)
    drawn = la.functional_samples(x, n_samples=8000, diagonal_output=True, generator=generator())[:, 0]
    wanted = torch.diag(la.predictive_distribution(x)[1][0].diagonal())
    assert (torch.cov(drawn.T) - wanted).abs().max() < 0.07 * wanted.max()


@pytest.mark.parametrize("subset", ["all", "last_layer", ("0",), "subnetwork"], ids=str)
def test_samples_of_the_network_are_its_outputs_at_sampled_weights(subset):
    la, x = fitted("diag", subset), new()
    drawn = la.functional_samples(x, "nn", n_samples=1500, generator=generator())
    by_hand = []
    for state in la.samples_as_state_dicts(1500, generator(1)):
        with torch.no_grad():
            by_hand.append(torch.func.functional_call(network(), state, (x,)))
    by_hand = torch.stack(by_hand)
    spread = by_hand.std(0)
    assert ((drawn.mean(0) - by_hand.mean(0)) / spread).abs().max() < 0.15
    torch.testing.assert_close(drawn.std(0), spread, rtol=0.12, atol=1e-9)


@pytest.mark.parametrize("pred_type", ["glm", "nn"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_a_generator_repeats_samples_and_predictive_samples_are_their_link(likelihood, pred_type):
    la, x = fitted("full", likelihood=likelihood), new()
    outputs, samples = (
        f(x, pred_type, n_samples=5, generator=generator()) for f in (la.functional_samples, la.predictive_samples)
    )
    link = {"classification": lambda z: z.softmax(-1), "multilabel": torch.sigmoid, "regression": lambda z: z}
    torch.testing.assert_close(samples, link[likelihood](outputs))
    again = la.functional_samples(x, pred_type, n_samples=5, generator=generator(1))
    assert not torch.equal(again, outputs) and samples.dtype == x.dtype


def test_logits_are_divided_by_their_temperature_in_samples_too():
    la, x = own(fitted()), new()
    la.logit_temperature = 3.0
    outputs, samples = (
        f(x, n_samples=5, generator=generator()) for f in (la.functional_samples, la.predictive_samples)
    )
    torch.testing.assert_close(samples, (outputs / 3).softmax(-1))


@pytest.fixture(scope="module")
def images():
    """Classes on axis 1 of maps."""
    torch.manual_seed(0)
    model = nn.Conv2d(1, 3, 2)
    x = torch.randn(6, 1, 3, 3)
    y = torch.randint(3, (6, 2, 2))
    la = Laplace(model, nn.CrossEntropyLoss(), hessian_structure="full", progress=False)
    return la.fit(DataLoader(TensorDataset(x, y), batch_size=3)), x


@pytest.mark.parametrize("pred_type", ["glm", "nn"])
def test_probabilities_of_images_sum_to_one_along_torchs_axis(images, pred_type):
    la, x = images
    samples = la.predictive_samples(x, pred_type, n_samples=4)
    assert samples.shape == (4, 6, 3, 2, 2)
    torch.testing.assert_close(samples.sum(2), torch.ones(4, 6, 2, 2))
    found = la.uncertainty(x, n_samples=50)
    assert all(value.shape == (6, 2, 2) for value in found.values())


def test_a_model_that_squeezes_gives_samples_of_one_input_too():
    class Squeezes(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(x).squeeze()

    torch.manual_seed(0)
    x, y = torch.randn(12, 4), torch.arange(12) % 3
    la = Laplace(Squeezes(), hessian_structure="full", progress=False)
    silent(lambda: la.fit(DataLoader(TensorDataset(x, y), batch_size=6)))
    samples = la.predictive_samples(x[:1], n_samples=4)
    assert samples.shape == (4, *la(x[:1]).shape)
    torch.testing.assert_close(samples.sum(-1), torch.ones(samples.shape[:-1]))
    assert {value.shape for value in la.uncertainty(x[:1]).values()} == {()}


@pytest.mark.parametrize("likelihood", ["classification", "multilabel"])
def test_entropies_add_up_and_are_those_of_the_samples(likelihood):
    la, x = fitted(likelihood=likelihood), new()
    found = la.uncertainty(x, n_samples=400, generator=generator())
    p = la.predictive_samples(x, n_samples=400, generator=generator())
    total = found["expected_entropy"] + found["mutual_information"]
    torch.testing.assert_close(found["predictive_entropy"], total)
    assert (found["mutual_information"] > 0).all()
    kind = torch.distributions.Categorical if likelihood == "classification" else torch.distributions.Bernoulli
    torch.testing.assert_close(found["expected_entropy"], kind(probs=p).entropy().mean(0))
    torch.testing.assert_close(found["predictive_entropy"], kind(probs=p.mean(0)).entropy())
    again = [la.uncertainty(x)["mutual_information"] for _ in range(2)]
    assert torch.equal(*again)


def test_a_regressions_variances_are_the_noise_and_the_functions():
    la, x = fitted(likelihood="regression"), new()
    found = la.uncertainty(x)
    covariance = torch.linalg.inv(dense_ggn("regression") / NOISE**2 + 2 * torch.eye(43, dtype=torch.float64))
    rows = jacobians(x)
    torch.testing.assert_close(found["epistemic_variance"], (rows @ covariance @ rows.mT).diagonal(dim1=1, dim2=2))
    torch.testing.assert_close(found["aleatoric_variance"], torch.full((3, 3), NOISE**2).double())


def test_noise_per_output_is_the_aleatoric_variance_of_each():
    la = make("diag", likelihood="regression", sigma_noise=[0.1, 0.2, 0.3]).fit(loader("regression"))
    wanted = torch.tensor([0.01, 0.04, 0.09], dtype=torch.float64).expand(3, 3)
    torch.testing.assert_close(la.uncertainty(new())["aleatoric_variance"], wanted)


def test_counts_have_no_noise_to_name():
    x, _ = data()
    la = Laplace(network(), nn.PoissonNLLLoss(), hessian_structure="diag", progress=False)
    la.fit(DataLoader(TensorDataset(x, torch.ones(30, 3).double()), batch_size=10))
    with pytest.raises(ValueError, match="Poisson"):
        la.uncertainty(x)


def test_joint_is_the_dense_covariance_over_all_outputs_of_all_samples():
    la, x = fitted(likelihood="regression"), new()
    mean, covariance = la(x, joint=True)
    posterior = torch.linalg.inv(dense_ggn("regression") / NOISE**2 + 2 * torch.eye(43, dtype=torch.float64))
    rows = jacobians(x).reshape(9, 43)
    torch.testing.assert_close(covariance, rows @ posterior @ rows.T)
    torch.testing.assert_close(mean, network()(x).detach().flatten())
    single = la(x)[1]
    torch.testing.assert_close(covariance.reshape(3, 3, 3, 3).diagonal(dim1=0, dim2=2).permute(2, 0, 1), single)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_a_whole_set_is_predicted_as_its_batches_are(likelihood):
    la = fitted(likelihood=likelihood)
    found, targets = la.predict(loader(likelihood, batch=7))
    x, y = data(likelihood)
    torch.testing.assert_close(found, la(x))
    assert torch.equal(targets, y)


def test_a_whole_set_is_predicted_with_options_from_any_loader():
    la, (x, y) = fitted(likelihood="regression"), data("regression")
    found, _ = la.predict([{"input": x[:9], "target": y[:9]}], diagonal_output=True)
    torch.testing.assert_close(found, la(x[:9], diagonal_output=True))
    other = la.predict([(y[:5], x[:5])], to_batch=lambda pair: (pair[1], pair[0]))
    torch.testing.assert_close(other[0], la(x[:5]))
    with pytest.raises(ValueError, match="empty"):
        la.predict([])
    with pytest.raises(ValueError, match="joint"):
        la.predict(loader("regression"), joint=True)


WRONG = {
    "pred_type": ({"pred_type": "glmm"}, ValueError, "'glm', 'nn'"),
    "gp": ({"pred_type": "gp"}, ValueError, "hessian_structure='gp'"),
    "link": ({"link_approx": "probitt"}, ValueError, "'probit'"),
    "samples": ({"n_samples": 0}, ValueError, "n_samples=0"),
    "generator": ({"generator": 3}, TypeError, "torch.Generator"),
    "misspelt": ({"link_aprox": "mc"}, TypeError, "Did you mean 'link_approx'"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.usefixtures("unchecked_annotations")
def test_an_option_that_does_not_fit_is_refused_by_name(name):
    options, kind, told = WRONG[name]
    with pytest.raises(kind, match=told):
        fitted()(new(), **options)
    if "link" not in name and name != "misspelt":
        with pytest.raises(kind, match=told):
            fitted().functional_samples(new(), **options)


@pytest.fixture
def torch64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("likelihood", ["classification", "regression"])
def test_predictions_are_laplace_torchs(torch64, likelihood):
    from laplace import Laplace as Peer
    from laplace.curvature import CurvlinopsGGN

    noise = {"sigma_noise": NOISE} if likelihood == "regression" else {}
    peer = Peer(network(), likelihood, "all", "kron", prior_precision=2.0, backend=CurvlinopsGGN, **noise)
    peer.fit(loader(likelihood))
    la, x = fitted("kron", likelihood=likelihood), new()
    for how in [{}, {"joint": True}] if noise else [{"link_approx": k} for k in ("probit", "bridge", "bridge_norm")]:
        torch.testing.assert_close(la(x, **how), peer(x, **how), rtol=1e-6, atol=1e-8)
    ours, theirs = (p.functional_samples(x, n_samples=4000).std(0) for p in (la, peer))
    torch.testing.assert_close(ours, theirs.detach(), rtol=0.07, atol=0)
