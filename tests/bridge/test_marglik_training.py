"""Training with the evidence: against laplace-torch's loop, step by step, in float64."""

import jax
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bridge import evidence, marglik_training
from jax_core.gradients import pull_stream
from tests.bridge.dense import silent

OPTIONS = {"n_epochs": 8, "n_epochs_burnin": 3, "marglik_frequency": 2, "optimizer_kwargs": {"lr": 1e-2}}


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)
    with jax.enable_x64(True):
        yield
    torch.set_default_dtype(torch.float32)


def network(outputs):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, outputs))


def loader(likelihood):
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    y = torch.sin(x.sum(1, keepdim=True)) if likelihood == "regression" else (x.sum(1) > 0).long() + (x[:, 0] > 1)
    return DataLoader(TensorDataset(x, y), batch_size=20)


# laplace-torch's slope of the evidence along the noise is off beside Kronecker factors: full matrices there
CASES = [("classification", "kron", "layerwise"), ("classification", "full", "diag"), ("regression", "full", "scalar")]


@pytest.mark.parametrize(("likelihood", "structure", "prior"), CASES)
def test_every_step_is_laplace_torchs(likelihood, structure, prior):
    from laplace import marglik_training as peers
    from laplace.curvature import CurvlinopsGGN

    how = {"likelihood": likelihood, "hessian_structure": structure, "prior_structure": prior, **OPTIONS}
    outputs = 1 if likelihood == "regression" else 3
    la, model, margliks, losses = silent(lambda: marglik_training(network(outputs), loader(likelihood), **how))
    how["backend"] = CurvlinopsGGN
    peer, theirs, wanted, peer_losses = silent(lambda: peers(network(outputs), loader(likelihood), **how))
    np.testing.assert_allclose(margliks, wanted, rtol=1e-6)
    np.testing.assert_allclose(losses, peer_losses, rtol=1e-9)
    for ours, other in zip(model.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours, other)
    np.testing.assert_allclose(la.prior_precision.reshape(-1), peer.prior_precision.detach().reshape(-1), rtol=1e-6)
    np.testing.assert_allclose(float(la.sigma_noise), float(peer.sigma_noise), rtol=1e-6)
    assert len(margliks) == 30


def test_curvature_and_evidence_are_compiled_once_for_all_epochs(compilations):
    silent(lambda: marglik_training(network(3), loader("classification"), n_epochs=5, n_hypersteps=2))
    assert compilations(evidence._loss_and_slopes) <= 1
    assert compilations(pull_stream._begin) <= 1


@pytest.mark.usefixtures("unchecked_annotations")
def test_bad_options_are_refused_before_training():
    for options, message in (
        ({"likelihood": "poisson"}, "likelihood='poisson'"),
        ({"n_epochs": 0}, "n_epochs=0"),
        ({"lr_hyp": -1.0}, "lr_hyp=-1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            marglik_training(network(3), loader("classification"), **options)
    with pytest.raises(TypeError, match="Did you mean 'n_epochs'"):
        marglik_training(network(3), loader("classification"), n_epoch=3)
    with pytest.raises(TypeError, match="iterator"):
        marglik_training(network(3), iter(loader("classification")))
    with pytest.warns(UserWarning, match="weight_decay is set to zero"):
        marglik_training(
            network(3), loader("classification"), n_epochs=1, optimizer_kwargs={"lr": 0.01, "weight_decay": 1.0}
        )
