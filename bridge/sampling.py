"""Samples of outputs, drawn by torch's generators."""

from __future__ import annotations

import jax
import torch

from bridge.fitted_model import FittedModel
from jax_core.likelihoods import Bernoulli, Categorical


def key_of(generator: torch.Generator | None) -> jax.Array:
    """A random key of the core, drawn by a generator; by torch's global one if there is none."""
    device = "cpu" if generator is None else generator.device
    return jax.random.key(int(torch.randint(2**31 - 1, (), generator=generator, device=device)))


def gaussian_samples(
    mean: torch.Tensor, covariance: torch.Tensor, n_samples: int, generator: torch.Generator | None
) -> torch.Tensor:
    """Samples ``(S, B, *shape)`` around a mean ``(B, *shape)``, by the symmetric root of ``(B, D, D)``."""
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp_min(0.0).sqrt().unsqueeze(-2)
    device = mean.device if generator is None else generator.device
    shape = (n_samples, *covariance.shape[:-1])
    noise = torch.randn(shape, generator=generator, device=device, dtype=mean.dtype).to(mean.device)
    return mean + torch.einsum("bij,sbj->sbi", root, noise).reshape(n_samples, *mean.shape)


def class_axis(fit: FittedModel, lead: int) -> int:
    """Where the classes lie behind ``lead`` axes of which the last is the batch."""
    axis = fit.layout.class_axis
    return lead + len(fit.layout.shape) - 1 if axis is None else lead + axis - 1


def to_predictions(samples: torch.Tensor, fit: FittedModel, logit_temperature: float) -> torch.Tensor:
    """Sampled outputs ``(S, B, *shape)`` as probabilities, where they are logits."""
    if isinstance(fit.predicted, Categorical):
        return torch.softmax(samples / logit_temperature, dim=class_axis(fit, 2))
    return torch.sigmoid(samples / logit_temperature) if isinstance(fit.predicted, Bernoulli) else samples


def entropies(samples: torch.Tensor, fit: FittedModel) -> dict[str, torch.Tensor]:
    """Entropies in nats from sampled probabilities ``(S, B, *shape)``."""
    if isinstance(fit.predicted, Categorical):
        axis = class_axis(fit, 2)
        predictive = torch.special.entr(samples.mean(0)).sum(axis - 1)
        expected = torch.special.entr(samples).sum(axis).mean(0)
    else:
        both = torch.stack([samples, 1 - samples])
        predictive = torch.special.entr(both.mean(1)).sum(0)
        expected = torch.special.entr(both).sum(0).mean(0)
    return {
        "predictive_entropy": predictive,
        "expected_entropy": expected,
        "mutual_information": (predictive - expected).clamp_min(0.0),
    }
