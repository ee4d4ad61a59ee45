"""Curvature, predictive, links and evidence against laplace-torch, and what laplax computes too against laplax.

laplace-torch knows no likelihood of several binary labels, so for ``binary_cross_entropy`` its backend is told the loss
and the Hessian; posterior, predictive and evidence are its own.
"""

import copy
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from laplace import Laplace
from laplace.curvature import CurvlinopsGGN
from laplax.curv import low_rank
from laplax.curv.cov import CURVATURE_METHODS, set_posterior_fn
from laplax.curv.ggn import create_ggn_mv as laplax_ggn_mv
from laplax.curv.utils import LowRankTerms
from laplax.eval import predictives, pushforward
from torch.utils.data import DataLoader, TensorDataset

from bridge.prediction import LabelProbabilities
from jax_core import (
    FitOptions,
    GaussianOutputs,
    LoaderPasses,
    LowRank,
    MonteCarlo,
    as_likelihood,
    create_posterior_fn,
    fit_curvature,
    joint_predictive,
    linearized_predictive,
    link_by_name,
    log_marginal_likelihood,
)
from tests.cases import LOSSES, quick_jit
from tests.jax_core.oracles import MODELS, torch_loss, twin

pytestmark = pytest.mark.in_turns

STRUCTURES = ("full", "diag")
PRIOR_MEAN = 0.1
SIGMA = {"cross_entropy": 1.0, "mse": 0.6, "binary_cross_entropy": 1.0}


class BinaryGGN(CurvlinopsGGN):
    def __init__(self, model, likelihood, **options):
        super().__init__(model, likelihood, **options)
        self.lossfunc = torch_loss("binary_cross_entropy")

    def _get_functional_hessian(self, f):
        p = torch.sigmoid(f)
        return torch.diag_embed(p * (1 - p))


@pytest.fixture(autouse=True)
def float64(x64):
    """laplace-torch computes partly in torch's default dtype, whatever the model's is."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@functools.cache
def peers(name, loss, structure, temperature=1.0):
    """The torch model and its twin, laplace-torch's posterior and our curvature."""
    carried = twin(name)
    peer = Laplace(
        carried.model,
        "regression" if loss == "mse" else "classification",
        subset_of_weights="all",
        hessian_structure=structure,
        backend=BinaryGGN if loss == "binary_cross_entropy" else CurvlinopsGGN,
        prior_precision=2.0,
        prior_mean=PRIOR_MEAN,
        sigma_noise=SIGMA[loss],
        temperature=temperature,
    )
    peer.fit(DataLoader(TensorDataset(carried.inputs, carried.targets(loss)), batch_size=4))
    data = carried.data(loss)
    batches = [jax.tree.map(lambda leaf, part=part: leaf[part], data) for part in (slice(4), slice(4, None))]
    fitted = fit_curvature(
        carried.model_fn,
        carried.params,
        as_likelihood(loss),
        LoaderPasses(batches),
        FitOptions(structure=structure, progress=False),
        key=jax.random.key(0),
    )
    return SimpleNamespace(carried=carried, peer=peer, fitted=fitted)


def posterior(both, loss, prior=2.0, temperature=1.0):
    arguments = {"prior_prec": prior, "sigma_noise": SIGMA[loss], "temperature": temperature}
    return create_posterior_fn(both.fitted.curvature, layout=both.carried.params)(arguments)


def dense(mv, size):
    return jax.vmap(mv, out_axes=1)(jnp.eye(size))


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", MODELS)
def test_curvature_is_laplace_torchs(name, loss, structure):
    both = peers(name, loss, structure)
    found = both.fitted.curvature.matrix() if structure == "full" else both.fitted.curvature.diagonal
    np.testing.assert_allclose(found, both.carried.sort(both.peer.H), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", MODELS)
def test_linearised_mean_and_covariance_are_laplace_torchs(name, loss, structure):
    both = peers(name, loss, structure)
    found = linearized_predictive(both.carried.model_fn, posterior(both, loss))(both.carried.data(loss)["input"])
    mean, covariance = both.peer._glm_predictive_distribution(both.carried.inputs)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", MODELS)
def test_evidence_is_laplace_torchs(name, loss, structure):
    both = peers(name, loss, structure)
    log_likelihood = both.fitted.log_likelihood(as_likelihood(loss), SIGMA[loss])
    found = log_marginal_likelihood(posterior(both, loss), log_likelihood, prior_mean=PRIOR_MEAN)
    np.testing.assert_allclose(found.fit, both.peer.log_likelihood, rtol=1e-9)
    np.testing.assert_allclose(found.complexity, both.peer.log_det_ratio, rtol=1e-9)
    np.testing.assert_allclose(found.scatter, both.peer.scatter, rtol=1e-9)
    np.testing.assert_allclose(found.total, both.peer.log_marginal_likelihood(), rtol=1e-9)


@pytest.mark.parametrize("prior", ["per_layer", "per_parameter"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_priors_that_differ_between_parameters_and_temperatures_are_laplace_torchs(structure, prior):
    both = peers("mlp", "mse", structure, temperature=1.5)
    carried, size = both.carried, len(both.carried.order)
    count = size if prior == "per_parameter" else len(carried.params)
    values = torch.linspace(0.5, 3.0, count)
    both.peer.prior_precision = values
    if prior == "per_parameter":
        ours = jnp.asarray(carried.sort(values))
    else:
        names = [name for name, _ in carried.model.named_parameters()]
        ours = jnp.asarray([float(values[names.index(name)]) for name in sorted(names)])
    found = posterior(both, "mse", ours, temperature=1.5)
    covariance = both.peer.posterior_covariance if structure == "full" else torch.diag(both.peer.posterior_variance)
    np.testing.assert_allclose(dense(found.cov_flat, size), carried.sort(covariance), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.logdet(), both.peer.log_det_posterior_precision, rtol=1e-9)
    np.testing.assert_allclose(found.log_det_ratio(), both.peer.log_det_ratio, rtol=1e-9)
    np.testing.assert_allclose(found.scatter(PRIOR_MEAN), both.peer.scatter, rtol=1e-9)


def test_joint_covariance_is_laplace_torchs():
    both = peers("attention", "mse", "full")
    found = joint_predictive(both.carried.model_fn, posterior(both, "mse"))(both.carried.data("mse")["input"])
    mean, covariance = both.peer._glm_predictive_distribution(both.carried.inputs, joint=True)
    np.testing.assert_allclose(found.mean.reshape(-1), mean, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.covariance.reshape(covariance.shape), covariance, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("link", ["probit", "mean_field_0", "bridge", "bridge_norm", "mc"])
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", MODELS)
def test_links_are_laplace_torchs(name, structure, link):
    """Mean field of order 0 is its probit; Monte Carlo agrees within the error of both."""
    both = peers(name, "cross_entropy", structure)
    inputs = both.carried.data("cross_entropy")["input"]
    outputs = linearized_predictive(both.carried.model_fn, posterior(both, "cross_entropy"))(inputs)
    count = 50_000
    ours = MonteCarlo(jax.random.key(0), count) if link == "mc" else link_by_name(link)
    torch.manual_seed(0)
    expected = both.peer(both.carried.inputs, link_approx="probit" if link == "mean_field_0" else link, n_samples=count)
    # a probability varies by less than 1/2: five standard errors of a difference
    tolerance = {"rtol": 0, "atol": 5 * 0.5 * (2 / count) ** 0.5} if link == "mc" else {"rtol": 1e-9}
    np.testing.assert_allclose(ours(*outputs), expected, **tolerance)


def test_probability_of_a_label_is_laplace_torchs_of_two_classes():
    """The sigmoid of one logit ``f`` is the softmax of the two logits ``(0, f)``."""
    both = peers("mlp", "cross_entropy", "full")
    mean, covariance = both.peer._glm_predictive_distribution(both.carried.inputs)
    found = LabelProbabilities(1.0)(GaussianOutputs(jnp.asarray(mean.numpy()), jnp.asarray(covariance.numpy())))
    peer = copy.copy(both.peer)
    for label in range(3):
        logits = torch.stack([torch.zeros(len(mean)), mean[:, label]], dim=-1)
        variances = torch.stack([torch.zeros(len(mean)), covariance[:, label, label]], dim=-1)
        given = logits, torch.diag_embed(variances)
        peer._glm_predictive_distribution = lambda x, given=given, **joint: given
        np.testing.assert_allclose(found[:, label], peer(None, link_approx="probit")[:, 1], rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "loss", "structure"),
    [
        *(("mlp", loss, "full") for loss in LOSSES),
        ("mlp", "cross_entropy", "diagonal"),
        ("cnn", "cross_entropy", "full"),
    ],
)
def test_linearised_mean_and_covariance_are_laplaxs(name, loss, structure):
    """laplax multiplies the curvature by ``sigma_squared``; one half undoes that its ``mse`` has no factor of 1/2."""
    both = peers(name, loss, structure.removesuffix("onal"))
    carried, data = both.carried, both.carried.data(loss)
    prior = {"prior_prec": 2.0, "sigma_squared": 0.5 if loss == "mse" else 1.0}
    steps = [pushforward.lin_setup, pushforward.lin_pred_cov]

    @quick_jit
    def expected(data):
        mv = laplax_ggn_mv(carried.model_fn, carried.params, data, loss)
        curvature = CURVATURE_METHODS[structure](mv, layout=carried.params)
        posterior_fn = set_posterior_fn(structure, curvature, layout=carried.params)
        arguments = carried.model_fn, carried.params, posterior_fn, prior
        return jax.vmap(pushforward.set_lin_pushforward(*arguments, pushforward_fns=steps))(data["input"])

    ours = create_posterior_fn(both.fitted.curvature, layout=carried.params)({"prior_prec": 2.0})
    found, expected = linearized_predictive(carried.model_fn, ours)(data["input"]), expected(data)
    np.testing.assert_allclose(found.mean, expected["pred_mean"], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.covariance, expected["pred_cov"], rtol=1e-9, atol=1e-12)


def test_covariance_and_its_root_of_a_low_rank_curvature_are_laplaxs():
    key = jax.random.key(0)
    basis, values = jnp.linalg.qr(jax.random.normal(key, (9, 4)))[0], jnp.array([30.0, 4.0, 0.5, 1e-3])
    ours = create_posterior_fn(LowRank(basis, values, jnp.zeros(())), layout=9)({"prior_prec": 2.0})
    precision = low_rank.low_rank_curvature_to_precision(
        LowRankTerms(basis, values, jnp.zeros(())), {"prior_prec": 2.0}
    )
    state = low_rank.low_rank_prec_to_posterior_state(precision)
    for found, expected in (
        (ours.cov_flat, low_rank.low_rank_posterior_state_to_cov(state)),
        (ours.scale_flat, low_rank.low_rank_posterior_state_to_scale(state)),
    ):
        np.testing.assert_allclose(dense(found, 9), dense(expected, 9), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_mean_field_links_are_laplaxs_normalised(order):
    """laplax leaves orders 1 and 2 as they come; they add up to one only nearly."""
    root = jax.random.normal(jax.random.key(1), (4, 5, 5))
    mean, covariance = 2 * jax.random.normal(jax.random.key(0), (4, 5)), root @ jnp.swapaxes(root, 1, 2)
    spread = covariance if order == 2 else jnp.diagonal(covariance, axis1=1, axis2=2)
    raw = quick_jit(jax.vmap(getattr(predictives, f"mean_field_{order}_predictive")))(mean, spread)
    found = quick_jit(link_by_name(f"mean_field_{order}"))(mean, covariance)
    np.testing.assert_allclose(found, raw / raw.sum(-1, keepdims=True), rtol=1e-9)
