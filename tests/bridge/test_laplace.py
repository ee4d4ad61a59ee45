"""Laplace as torch code meets it, and its numbers against dense references and laplace-torch."""

import copy
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bridge import Laplace, TraceError
from tests.bridge.dense import silent


def network(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def normalised():
    """Convolutions with batch norm, whose running statistics are buffers."""
    torch.manual_seed(0)
    (norm := nn.BatchNorm2d(5))(torch.randn(50, 5, 2, 1) * 2 + 1)
    layers = nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 5, (1, 2)), norm, nn.Tanh(), nn.Flatten(), nn.Linear(10, 3)
    return nn.Sequential(*layers).eval()


def digits(n=24, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 4, generator=generator, dtype=dtype)
    return x, torch.randint(3, (n,), generator=generator)


def loader(x, y, batch=10, **options):
    return DataLoader(TensorDataset(x, y), batch_size=batch, **options)


def fitted(**options):
    return Laplace(network(), progress=False, **({"rank": 10} | options)).fit(loader(*digits()))


@pytest.fixture
def torch64():
    """laplace-torch computes partly in torch's default dtype, whatever the model's is."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def dense_ggn(model, x):
    """Sum of J^T H J by torch's autograd, in the order of the flattened (sorted) parameters."""
    names = sorted(dict(model.named_parameters()))
    params = {name: p.detach() for name, p in model.named_parameters()}
    jacobians = torch.func.vmap(
        torch.func.jacrev(lambda p, one: torch.func.functional_call(model, p, (one[None],))[0]), in_dims=(None, 0)
    )(params, x)
    rows = torch.cat([jacobians[name].flatten(2) for name in names], dim=-1)
    p = model(x).softmax(-1).detach()
    hessian = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return torch.einsum("bcp,bcd,bdq->pq", rows, hessian, rows), rows


def test_probabilities_are_torchs_own_kind():
    la = fitted()
    x = digits()[0]
    p = la(x)
    assert isinstance(la, nn.Module)
    assert p.dtype == torch.float32
    assert p.shape == (24, 3)
    assert p.device == x.device
    torch.testing.assert_close(p.sum(-1), torch.ones(24))
    assert not p.requires_grad
    assert la(x.to(torch.bfloat16).float()[:1]).shape == (1, 3)
    assert la(x[:0]).shape == (0, 3)


def test_model_is_never_changed():
    model = network().train()
    hooked = copy.deepcopy(model.state_dict())
    Laplace(model, rank=5, progress=False).fit(loader(*digits()))(digits()[0])
    assert model.training
    assert all(torch.equal(v, hooked[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("make", [network, normalised])
@pytest.mark.parametrize("method", ["auto", "lanczos", "nystrom", "gram", "lobpcg"])
def test_methods_find_the_dense_eigenvalues(method, make):
    model, (x, y) = make(), digits()
    la = Laplace(model, method=method, rank=8, passes=3, progress=False)
    la.options = type(la.options)(**{**vars(la.options), "tolerance": 0.0})
    la.fit(loader(x, y))
    expected = torch.linalg.eigvalsh(dense_ggn(model, x)[0]).flip(0)
    leading = 1 if method == "lanczos" else 4  # eight steps of Lanczos converge at the top only
    np.testing.assert_allclose(la.fitted.curvature.s[:leading], expected[:leading], rtol=2e-2)


@pytest.mark.parametrize("make", [network, normalised])
@pytest.mark.parametrize("structure", ["full", "diag", "lowrank"])
def test_predictive_is_the_dense_one(structure, make):
    model, (x, y) = make(), digits()
    ggn, rows = dense_ggn(model, x)
    options = {"hessian_structure": structure, "rank": len(ggn), "prior_precision": 3.0, "progress": False}
    la = Laplace(model, **options).fit(loader(x, y))
    kept = torch.diag(torch.diagonal(ggn)) if structure == "diag" else ggn
    covariance = torch.linalg.inv(kept + 3.0 * torch.eye(len(ggn)))
    mean, variance = la.predictive_distribution(x)
    torch.testing.assert_close(mean, model(x).detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(variance, rows @ covariance @ rows.mT, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("structure", ["full", "diag"])
@pytest.mark.parametrize("likelihood", ["classification", "regression"])
def test_evidence_and_predictive_equal_laplace_torchs(x64, torch64, structure, likelihood):
    from laplace import Laplace as Peer
    from laplace.curvature import CurvlinopsGGN

    model, (x, y) = network(dtype=torch.float64), digits(dtype=torch.float64)
    y = y if likelihood == "classification" else torch.randn(24, 3, dtype=torch.float64)
    options = {"prior_precision": 2.0, "sigma_noise": 1.0 if likelihood == "classification" else 0.6}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peer's own
        peer = Peer(
            model, likelihood, subset_of_weights="all", hessian_structure=structure, backend=CurvlinopsGGN, **options
        )
        peer.fit(loader(x, y))
        mean, variance = peer._glm_predictive_distribution(x)
        evidence = float(peer.log_marginal_likelihood())
    la = Laplace(model, likelihood, hessian_structure=structure, progress=False, **options).fit(loader(x, y))
    np.testing.assert_allclose(la.log_marginal_likelihood(), evidence, rtol=1e-6)
    ours = la.predictive_distribution(x)
    torch.testing.assert_close(ours[0], mean.detach())
    torch.testing.assert_close(ours[1], variance.detach(), rtol=1e-8, atol=1e-10)


def test_loader_is_read_once_and_its_size_scales_the_curvature():
    x, y = digits()
    reads = []

    class Counting(TensorDataset):
        def __getitem__(self, i):
            reads.append(i)
            return super().__getitem__(i)

    counted = DataLoader(Counting(x, y), batch_size=10, shuffle=True)
    la = Laplace(network(), rank=10, progress=False).fit(counted, num_total_samples=240)
    assert len(reads) <= 24 + 10  # one pass, and the batch that shows the shapes
    plain = fitted()
    np.testing.assert_allclose(la.fitted.curvature.s, 10 * plain.fitted.curvature.s, rtol=1e-3)


def test_batches_may_be_mappings_of_arrays():
    x, y = digits()
    mapping = [{"input": x.numpy(), "target": y.numpy()}]
    la = Laplace(network(), rank=10, progress=False).fit(mapping)
    torch.testing.assert_close(la(x), fitted()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "link", ["probit", "mc", "bridge", "bridge_norm", "mean_field_0", "mean_field_1", "mean_field_2"]
)
def test_every_link_gives_probabilities(link):
    p = fitted()(digits()[0], link_approx=link, n_samples=50)
    torch.testing.assert_close(p.sum(-1), torch.ones(24), atol=1e-5, rtol=0)


def test_loss_modules_stand_for_likelihoods():
    x, y = digits()
    weight = torch.tensor([1.0, 2.0, 0.5])
    plain = Laplace(network(), nn.CrossEntropyLoss(weight=weight), rank=10, progress=False).fit(loader(x, y))
    assert plain.likelihood.weight.tolist() == weight.tolist()
    labels = torch.nn.functional.one_hot(y, 3).float()
    multi = Laplace(network(), nn.BCEWithLogitsLoss(), rank=10, progress=False).fit(loader(x, labels))
    assert ((multi(x) >= 0) & (multi(x) <= 1)).all()
    with pytest.raises(ValueError, match="KLDivLoss"):
        Laplace(network(), nn.KLDivLoss())


def test_tuning_maximises_the_evidence_of_the_fit():
    la = fitted()
    best = silent(lambda: la.optimize_prior_precision(method="marglik")).prior_precision
    top = la.log_marginal_likelihood()
    for factor in (0.5, 0.9, 1.1, 2.0):
        la.prior_precision = best * factor
        assert la.log_marginal_likelihood() < top


def test_larger_prior_precision_is_surer():
    la = fitted()
    x = digits()[0]
    la.prior_precision = 0.1
    unsure = la(x).max(-1).values.mean()
    la.prior_precision = 1e6
    torch.testing.assert_close(la(x), network()(x).softmax(-1).detach(), atol=1e-3, rtol=0)
    assert unsure < la(x).max(-1).values.mean()


@pytest.mark.usefixtures("unchecked_annotations")
def test_misspelt_options_fail():
    with pytest.raises(TypeError, match="rnak"):
        Laplace(network(), rnak=99)
    for option in ({"method": "lancsoz"}, {"hessian_structure": "krom"}, {"link_approx": "probbit"}, {"cache": "disk"}):
        with pytest.raises(ValueError, match=f"{next(iter(option))}=.*Choose one of"):
            Laplace(network(), **option)
    with pytest.raises(ValueError, match="'clasification'"):
        Laplace(network(), "clasification")
    for option in ({"rank": 0}, {"rank": 2.5}, {"sigma_noise": -1.0}, {"temperature": 0.0}):
        with pytest.raises(ValueError, match=next(iter(option))):
            Laplace(network(), **option)
    with pytest.raises(TypeError, match="function"):
        Laplace(lambda x: x)


def test_predicting_before_fitting_names_fit():
    la = Laplace(network(), progress=False)
    for call in (
        lambda: la(digits()[0]),
        la.log_marginal_likelihood,
        la.optimize_prior_precision,
        lambda: la.posterior,
    ):
        with pytest.raises(RuntimeError, match=r"fit\(train_loader\)"):
            call()


def bad_loaders():
    x, y = digits()
    nan = x.clone()
    nan[15, 2] = float("nan")
    wide = [(x, y), (torch.randn(3, 5), y[:3])]
    return {
        "empty": ([], ValueError, "empty"),
        "class": (loader(x, y + 1), ValueError, r"class 3.*from 0 to 2"),
        "negative": (loader(x, y - 1), ValueError, "class -1"),
        "float": (loader(x, y.float()), TypeError, r"target.long\(\)"),
        "nan": (loader(nan, y), ValueError, "Batch 1.*NaN"),
        "shape": (wide, ValueError, "Batch 1.*shape"),
        "batch": ([x], TypeError, "Tensor"),
    }


@pytest.mark.parametrize("kind", ["empty", "class", "negative", "float", "nan", "shape", "batch"])
def test_bad_data_is_named_and_an_earlier_fit_is_kept(kind):
    la = fitted()
    before = la(digits()[0])
    given, error, message = bad_loaders()[kind]
    with pytest.raises(error, match=message):
        la.fit(given)
    torch.testing.assert_close(la(digits()[0]), before)


@pytest.mark.parametrize("method", ["nystrom", "gram", "lanczos"])
def test_a_rank_beyond_the_number_of_weights_is_that_number(method):
    whole = Laplace(network(), hessian_structure="full", progress=False).fit(loader(*digits()))
    la = Laplace(network(), method=method, rank=100, progress=False).fit(loader(*digits()))
    assert "rank 51 (all there are)" in la.plan.reason
    torch.testing.assert_close(la(digits()[0]), whole(digits()[0]), atol=1e-5, rtol=1e-4)


def test_bad_weights_are_named():
    model = network()
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    with pytest.raises(TraceError, match=r"0\.weight"):
        Laplace(model, rank=5, progress=False).fit(loader(*digits()))


def test_bad_inputs_are_named():
    la = fitted()
    with pytest.raises(ValueError, match="shape"):
        la(torch.randn(2, 5))
    with pytest.raises(ValueError, match="NaN"):
        la(torch.full((2, 4), float("nan")))
    with pytest.raises(TypeError, match="'digits'"):
        la("digits")


def test_print_tells_the_state():
    text = repr(fitted())
    assert "fitted on 24 samples" in text
    assert "rank=10" in text
    assert "not fitted" in repr(Laplace(network()))


def test_plan_says_why():
    la = fitted(method="auto")
    assert la.plan.method == "gram"
    assert "parameters" in la.plan.reason
    assert fitted(hessian_structure="diag").plan is None


def test_streaming_gives_what_the_snapshot_gives():
    streamed = fitted(cache="none", method="nystrom")
    kept = fitted(cache="memory", method="nystrom")
    np.testing.assert_allclose(streamed.fitted.curvature.s, kept.fitted.curvature.s, rtol=1e-3)
    assert jnp.isfinite(streamed.fitted.curvature.s).all()
