"""Joint and sampled predictions of a torch model, against dense references and plain loops in torch."""

import copy

import jax
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bridge import Laplace


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def data(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(24, 4, generator=generator, dtype=dtype)
    return x, torch.randint(3, (24,), generator=generator)


def fitted(likelihood="classification", dtype=torch.float32, **options):
    x, y = data(dtype)
    y = {"classification": y, "multilabel": nn.functional.one_hot(y, 3).to(dtype), "regression": x[:, :3]}[likelihood]
    options = {"hessian_structure": "full", "progress": False, "prior_precision": 5.0} | options
    return Laplace(network(dtype), likelihood, **options).fit(DataLoader(TensorDataset(x, y), batch_size=10))


def rows_of(model, x):
    """The Jacobian by torch's autograd, in the order of the sorted parameters."""
    params = {name: p.detach() for name, p in model.named_parameters()}
    jacobians = torch.func.vmap(
        torch.func.jacrev(lambda p, one: torch.func.functional_call(model, p, (one,))), in_dims=(None, 0)
    )(params, x)
    return torch.cat([jacobians[name].flatten(2) for name in sorted(params)], dim=-1)


def by_sampled_weights(la, x, count):
    """Torch's own outputs at weights drawn as the library draws them."""
    outputs = []
    for key in jax.random.split(jax.random.key(la.seed), count):
        deviation = np.array(la.posterior.deviations(key, 1)[0])
        model, start = copy.deepcopy(la.model), 0
        with torch.no_grad():
            for _, p in sorted(model.named_parameters()):
                p.add_(torch.tensor(deviation[start : start + p.numel()]).view_as(p))
                start += p.numel()
            outputs.append(model(x))
    return torch.stack(outputs)


@pytest.mark.parametrize("likelihood", ["classification", "regression"])
def test_joint_covariance_is_the_dense_one(x64, likelihood):
    la = fitted(likelihood, torch.float64)
    model, x = network(torch.float64), data(torch.float64)[0][:7]
    train = data(torch.float64)[0]
    rows = rows_of(model, train)
    p = model(train).softmax(-1).detach()
    hessian = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    hessian = hessian if likelihood == "classification" else torch.eye(3, dtype=torch.float64).expand(24, 3, 3)
    ggn = torch.einsum("bcp,bcd,bdq->pq", rows, hessian, rows)
    covariance = torch.linalg.inv(ggn + 5.0 * torch.eye(51, dtype=torch.float64))
    mean, joint = la.predictive_distribution(x, joint=True)
    own = rows_of(model, x)
    torch.testing.assert_close(mean, model(x).detach())
    torch.testing.assert_close(joint, torch.einsum("acp,pq,bdq->acbd", own, covariance, own), rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("structure", ["full", "diag", "lowrank"])
def test_joint_blocks_are_the_marginal_covariances(structure):
    la, x = fitted(hessian_structure=structure, rank=10), data()[0]
    mean, marginal = la.predictive_distribution(x)
    same, joint = la.predictive_distribution(x, joint=True)
    assert joint.shape == (24, 3, 24, 3)
    torch.testing.assert_close(same, mean)
    torch.testing.assert_close(torch.einsum("acad->acd", joint), marginal, rtol=1e-4, atol=1e-5)


def test_joint_covariance_of_part_of_a_batch_is_part_of_it():
    la, x = fitted(), data()[0]
    joint = la.predictive_distribution(x, joint=True)[1]
    part = la.predictive_distribution(x[3:8], joint=True)[1]
    torch.testing.assert_close(part, joint[3:8, :, 3:8], rtol=1e-4, atol=1e-5)


def test_sampled_probabilities_are_averages_over_torchs_own_networks():
    x = data()[0]
    la = fitted()
    expected = by_sampled_weights(la, x, 6).softmax(-1).mean(0)
    torch.testing.assert_close(la(x, pred_type="nn", n_samples=6), expected, rtol=1e-4, atol=1e-5)
    la = fitted("multilabel")
    expected = by_sampled_weights(la, x, 6).sigmoid().mean(0)
    torch.testing.assert_close(la(x, pred_type="nn", n_samples=6), expected, rtol=1e-4, atol=1e-5)


def test_sampled_regression_is_the_mean_and_variance_of_torchs_own_networks():
    la, x = fitted("regression"), data()[0]
    outputs = by_sampled_weights(la, x, 6)
    mean, variance = la(x, pred_type="nn", n_samples=6)
    torch.testing.assert_close(mean, outputs.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(variance, outputs.var(0), rtol=1e-3, atol=1e-4)


def test_sampled_predictions_repeat_and_do_not_depend_on_the_batch():
    la, x = fitted(n_samples=5), data()[0]
    whole = la(x, pred_type="nn")
    torch.testing.assert_close(la(x, pred_type="nn", n_samples=5), whole, rtol=0, atol=0)
    torch.testing.assert_close(torch.cat([la(x[:9], pred_type="nn"), la(x[9:], pred_type="nn")]), whole)
    assert not torch.equal(fitted(n_samples=5, seed=1)(x, pred_type="nn"), whole)


def test_sampled_predictions_tend_to_the_models_own_for_a_strong_prior():
    la, x = fitted(prior_precision=1e8), data()[0]
    torch.testing.assert_close(la(x, pred_type="nn", n_samples=5), network()(x).softmax(-1).detach(), atol=1e-3, rtol=0)


def test_sampled_and_linearised_predictions_agree_where_the_posterior_is_narrow():
    la, x = fitted(prior_precision=300.0), data()[0]
    linearised = la(x, link_approx="mc", n_samples=2000)
    assert (la(x, pred_type="nn", n_samples=200) - linearised).abs().max() < 0.03


@pytest.mark.usefixtures("unchecked_annotations")
def test_bad_prediction_options_are_named():
    la, x = fitted(), data()[0]
    with pytest.raises(ValueError, match=r"pred_type='mcmc'.*'glm', 'nn'"):
        la(x, pred_type="mcmc")
    for count in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="n_samples"):
            la(x, pred_type="nn", n_samples=count)
    with pytest.raises(ValueError, match="shape"):
        la(x[:, :3], pred_type="nn")
    with pytest.raises(ValueError, match="shape"):
        la.predictive_distribution(x[:, :3], joint=True)
