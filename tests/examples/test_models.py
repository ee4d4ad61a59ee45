"""The two CNNs, in torch and in flax.nnx."""

import jax
import numpy as np
import pytest
import torch
from models import MODELS, count_parameters, fit_temperature, train
from nnx_models import as_params, nnx_function


@pytest.mark.parametrize(("name", "size"), [("seed", 28_714), ("nnx-docs", 824_458)])
def test_flax_with_torchs_weights_gives_torchs_logits(name, size):
    torch.manual_seed(0)
    model, images = MODELS[name](), torch.randn(3, 1, 28, 28)
    assert count_parameters(model) == size
    params = as_params({key: value.detach().numpy() for key, value in model.named_parameters()})
    logits = jax.vmap(nnx_function(name), in_axes=(0, None))(images.permute(0, 2, 3, 1).numpy(), params)
    np.testing.assert_allclose(logits, model(images).detach(), atol=1e-6)


def test_training_lowers_the_loss_and_repeats_itself():
    images, labels = torch.randn(64, 5), torch.arange(64) % 3
    weights = []
    for _ in range(2):
        torch.manual_seed(0)
        model = torch.nn.Linear(5, 3)
        before = torch.nn.functional.cross_entropy(model(images), labels).item()
        train(model, images, labels, steps=20, learning_rate=0.1, quiet=True)
        assert torch.nn.functional.cross_entropy(model(images), labels).item() < before
        weights.append(model.weight.detach())
    assert torch.equal(*weights)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_fitted_temperature_undoes_a_scaling_of_calibrated_logits(temperature):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    assert fit_temperature(logits * temperature, labels) == pytest.approx(temperature, rel=0.05)
