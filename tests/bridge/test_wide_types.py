"""A model in float64 is worked on in float64, whether the program has JAX's 64-bit types or not."""

import copy
import functools

import jax
import numpy as np
import pytest
import torch

import bridge
from bridge import Laplace
from tests.bridge.small import CASES, data, loader, make

pytestmark = pytest.mark.in_turns

assert not jax.config.read("jax_enable_x64")


@functools.cache
def narrow(structure="full", subset="all", likelihood="classification"):
    """Fitted outside of any context."""
    return make(structure, subset, likelihood, enable_backprop=True).fit(loader(likelihood))


@pytest.mark.parametrize(("structure", "subset"), CASES, ids=str)
def test_results_are_those_with_64_bit_types_on(structure, subset):
    la, x = narrow(structure, subset), data()[0][:5]
    with jax.enable_x64(True):
        other = make(structure, subset).fit(loader())
        torch.testing.assert_close(la(x), other(x), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(la(x), other(x), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(la.posterior_variance, other.posterior_variance, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(la.evidence().total, other.evidence().total, rtol=1e-12)
    vector = torch.randn(la.order.size, dtype=torch.float64)
    for precision in (la.posterior_precision, la.H):
        if not isinstance(precision, torch.Tensor):
            torch.testing.assert_close(precision @ vector, precision.to_matrix() @ vector, rtol=1e-9, atol=1e-12)
    assert not jax.config.read("jax_enable_x64")


def test_hyperparameters_set_outside_give_a_posterior_in_float64():
    la = copy.deepcopy(narrow(likelihood="regression"))
    la.sigma_noise, la.prior_precision = 0.3, 0.1
    assert la.posterior.prior_precision.dtype == np.float64
    precision = la.H / 0.09 + 0.1 * torch.eye(43, dtype=torch.float64)
    torch.testing.assert_close(la.posterior_precision, precision, rtol=1e-12, atol=1e-12)


def test_files_and_copies_keep_float64(tmp_path):
    la, x = narrow("kron"), data()[0][:5]
    bridge.save(la, tmp_path / "la.safetensors")
    for other in (bridge.load(tmp_path / "la.safetensors", make("kron")), copy.deepcopy(la)):
        assert torch.equal(other(x), la(x))


def test_gradients_by_the_input_are_in_float64():
    la, x = narrow("diag"), data()[0][:2].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: la(x), (x,), eps=1e-6, atol=1e-8, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:.*at the edge of the grid", "ignore:The evidence")
@pytest.mark.parametrize("how", [{"method": "marglik"}, {"val_loader": loader(part=slice(20, 30)), "grid_size": 3}])
def test_searches_run_in_float64(how):
    la = copy.deepcopy(narrow("diag"))
    la.optimize_prior_precision(**how)
    assert la(data()[0]).dtype == torch.float64
    assert la.posterior.prior_precision.dtype == np.float64


def test_a_model_made_narrow_after_a_fit_is_fitted_as_it_is_now():
    la = copy.deepcopy(narrow("diag"))
    la.model.float()
    x, y = data()
    la.fit([(x.float(), y)])
    assert la(x.float()).dtype == torch.float32
    assert la.posterior.prior_precision.dtype == np.float32


def test_a_loss_with_weights_in_float64_is_taken():
    weights = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    loss = torch.nn.CrossEntropyLoss(weight=weights)
    la = Laplace(make().model, loss, hessian_structure="diag", progress=False).fit(loader())
    with jax.enable_x64(True):
        other = Laplace(make().model, loss, hessian_structure="diag", progress=False).fit(loader())
    np.testing.assert_allclose(la.evidence().total, other.evidence().total, rtol=1e-12)
