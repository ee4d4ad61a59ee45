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
    """Samples ``(S, B, *shape)`` around a mean ``(B, *shape)``, by a root of each covariance ``(B, D, D)``."""
    root = _root(covariance)
    device = mean.device if generator is None else generator.device
    shape = (n_samples, *covariance.shape[:-1])
    noise = torch.randn(shape, generator=generator, device=device, dtype=mean.dtype).to(mean.device)
    return mean + torch.einsum("bij,sbj->sbi", root, noise).reshape(n_samples, *mean.shape)


def _root(covariance: torch.Tensor) -> torch.Tensor:
    """Cholesky factors, which torch can differentiate where eigenvalues are equal; eigenvectors where there is none."""
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if not failed.any():
        return factor
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp_min(0.0).sqrt().unsqueeze(-2)


def class_axis(fit: FittedModel) -> int:
    """Where the classes lie, counted from the end: a model that squeezes gives one sample without its batch axis."""
    axis = fit.layout.class_axis
    return -1 if axis is None else axis - 1 - len(fit.layout.shape)


def to_predictions(samples: torch.Tensor, fit: FittedModel, logit_temperature: float) -> torch.Tensor:
    """Sampled outputs ``(S, B, *shape)`` as probabilities, where they are logits."""
    if isinstance(fit.predicted, Categorical):
        return torch.softmax(samples / logit_temperature, dim=class_axis(fit))
    return torch.sigmoid(samples / logit_temperature) if isinstance(fit.predicted, Bernoulli) else samples


def entropies(samples: torch.Tensor, fit: FittedModel) -> dict[str, torch.Tensor]:
    """Entropies in nats from sampled probabilities ``(S, B, *shape)``."""
    if isinstance(fit.predicted, Categorical):
        axis = class_axis(fit)
        predictive = torch.special.entr(samples.mean(0)).sum(axis)
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


def predicted_variances(mean: torch.Tensor, variance: torch.Tensor) -> dict[str, torch.Tensor]:
    """Variances of noise and function, from those of outputs that are means and then log-variances."""
    (_, log_noise), (epistemic, spread) = mean.chunk(2, dim=-1), variance.chunk(2, dim=-1)
    return {"aleatoric_variance": torch.exp(log_noise + spread / 2), "epistemic_variance": epistemic}
