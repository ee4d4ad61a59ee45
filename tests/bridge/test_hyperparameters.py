"""Hyperparameters: any kind of number, in the order of ``model.parameters()``, and whatever depends on them follows."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from bridge import Laplace, hyperparameters
from bridge.parameter_order import ParameterOrder
from tests.bridge.dense import double, fit, ggn, jacobian, silent

pytestmark = pytest.mark.in_turns


def network(layers=2):
    """More than ten modules, so that sorted names ("10" before "2") are in another order than torch's."""
    torch.manual_seed(0)
    inner = [m for _ in range(layers) for m in (nn.Linear(3, 3), nn.Tanh())]
    return nn.Sequential(*inner, nn.Linear(3, 2))


ORDER = ParameterOrder.of(network(6))
DATA = torch.randn(14, 3, generator=torch.Generator().manual_seed(1)), torch.arange(14) % 2


@given(st.sampled_from(["tensor", "parameter"]), st.booleans())
def test_orders_undo_each_other(kind, batched):
    count = len(ORDER.names) if kind == "tensor" else ORDER.size
    values = np.random.default_rng(0).random((3, count) if batched else count)
    np.testing.assert_array_equal(ORDER.to_torch(ORDER.to_core(values)), values)
    np.testing.assert_array_equal(ORDER.to_core(ORDER.to_torch(values)), values)


def test_core_order_is_that_in_which_jax_flattens_the_names():
    model = network(6)
    named = {name: jnp.asarray(p.detach().numpy()) for name, p in model.named_parameters()}
    flat = np.concatenate([np.ravel(named[name]) for name in sorted(named)])
    ours = ORDER.to_core(nn.utils.parameters_to_vector(model.parameters()).detach().numpy())
    np.testing.assert_array_equal(ours, flat)


@pytest.mark.parametrize("kind", [float, np.float32, np.float64, np.array, torch.tensor, jnp.asarray, lambda v: [v]])
def test_every_kind_of_number_is_a_number(kind):
    for check in (hyperparameters.sigma_noise, hyperparameters.temperature):
        assert check(kind(0.25)) == 0.25
    assert hyperparameters.prior_precision(kind(0.25), ORDER) == 0.25
    assert hyperparameters.prior_mean(kind(-0.25), ORDER) == -0.25


def dense_variance(model, x, y, precision):
    """Of the first sample's outputs, in float64."""
    curvature = ggn(model, x, lambda f, i: F.cross_entropy(f, y[i : i + 1], reduction="sum"))
    rows = jacobian(double(model), x[:1].double())
    return rows @ torch.linalg.inv(curvature + torch.diag(precision.double())) @ rows.T


@pytest.mark.parametrize("structure", ["full", "lowrank"])
@pytest.mark.parametrize("given_as", ["per tensor", "per parameter", "by name", "by name, in arrays"])
def test_a_prior_is_read_in_the_order_of_parameters(given_as, structure):
    model, (x, y) = network(6), DATA
    torch.manual_seed(2)
    each = torch.rand(len(ORDER.names)) * 10 + 0.1
    whole = torch.cat([torch.full((n,), v) for n, v in zip(ORDER.sizes, each.tolist(), strict=True)])
    shaped = {n: v * torch.ones(s) for n, v, s in zip(ORDER.names, each, ORDER.shapes, strict=True)}
    forms = {
        "per tensor": each,
        "per parameter": whole.numpy(),
        "by name": dict(zip(ORDER.names, each.tolist(), strict=True)),
        "by name, in arrays": shaped,
    }
    la = fit(model, x, y, "classification", structure, rank=30, prior_precision=forms[given_as])
    found = la.predictive_distribution(x[:1])[1][0].double()
    torch.testing.assert_close(found, dense_variance(model, x, y, whole), rtol=2e-3, atol=1e-6)


def test_setting_after_fit_is_constructing_with_it():
    x = DATA[0]
    changes = {"sigma_noise": 0.3, "temperature": 2.0, "prior_precision": 5.0, "prior_mean": 0.5}
    later = fit(network(), x, x[:, :2], "regression")
    for name, value in changes.items():
        setattr(later, name, torch.tensor(value))
        assert getattr(later, name) == pytest.approx(value)
    first = fit(network(), x, x[:, :2], "regression", **changes)
    torch.testing.assert_close(later(x), first(x))
    np.testing.assert_allclose(later.log_marginal_likelihood(), first.log_marginal_likelihood(), rtol=1e-6)


def test_prior_mean_enters_the_evidence_in_the_order_of_parameters():
    model, (x, y) = network(6), DATA
    weights = nn.utils.parameters_to_vector(model.parameters()).detach()
    mean, precision = torch.randn(len(weights)), torch.rand(len(weights)) + 0.5
    la = fit(model, x, y, prior_mean=mean, prior_precision=precision)
    expected = float((precision * (weights - mean) ** 2).sum())
    np.testing.assert_allclose(float(la.evidence().scatter), expected, rtol=1e-5)
    tuned = silent(lambda: la.optimize_prior_precision("marglik"))
    np.testing.assert_allclose(
        float(la.evidence().scatter), tuned.prior_precision * float(((weights - mean) ** 2).sum()), rtol=1e-5
    )


def test_layerwise_precisions_come_back_in_the_order_of_parameters():
    model, (x, y) = network(6), DATA
    la = fit(model, x, y, "classification", "diag")
    tuned = la.optimize_prior_precision(prior_structure="layerwise")
    assert torch.equal(la.prior_precision, torch.from_numpy(tuned.prior_precision).double())
    best = la.log_marginal_likelihood()
    for i in (0, len(ORDER.names) - 1):  # a step along one tensor's own precision only loses
        for factor in (0.5, 2.0):
            moved = la.prior_precision.clone()
            moved[i] *= factor
            other = fit(model, x, y, "classification", "diag", prior_precision=moved)
            assert other.log_marginal_likelihood() < best + 1e-3


@pytest.mark.parametrize(("dtype", "found"), [(torch.float32, torch.float32), (torch.bfloat16, torch.float32)])
def test_hyperparameters_are_read_in_the_type_of_the_weights(dtype, found):
    la = Laplace(network().to(dtype), "regression", "all", "diag", prior_precision=[0.1] * 6)
    assert {v.dtype for v in (la.prior_precision, la.prior_mean, la.sigma_noise, la.mean)} == {found}
    assert (la.prior_precision == 0.1).all() and "0.1" in repr(Laplace(network(), prior_precision=0.1))


def test_those_of_a_model_in_float64_keep_all_digits():
    la = Laplace(network().double(), "regression", sigma_noise=0.1)
    assert la.sigma_noise.dtype == la.prior_precision.dtype == torch.float64 and la.sigma_noise.item() == 0.1


def test_noise_in_a_matrix_of_one_is_refused():
    with pytest.raises(ValueError, match=r"sigma_noise of shape \(1, 1\)"):
        Laplace(network(), "regression", sigma_noise=torch.ones(1, 1))


def test_noise_that_becomes_one_per_output_needs_a_new_fit():
    x, _ = DATA
    la = fit(network(), x, x[:, :2], "regression")
    with pytest.raises(ValueError, match="part of the curvature"):
        la.sigma_noise = [0.3, 0.4]
    assert la.sigma_noise == 1.0


def test_freezing_after_construction_is_followed_or_refused():
    x, y = DATA
    model = network()
    la = Laplace(model, hessian_structure="full", progress=False)
    each = Laplace(model, hessian_structure="full", progress=False, prior_precision=torch.ones(6))
    model[0].requires_grad_(False)
    assert la.fit([(x, y)]).posterior.size == 20
    with pytest.raises(ValueError, match=r"given per parameter.*after freezing"):
        each.fit([(x, y)])
