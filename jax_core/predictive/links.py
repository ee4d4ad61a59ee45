"""From a Gaussian over logits to class probabilities.

Every link takes ``mean (..., C)`` and ``covariance (..., C, C)`` and returns probabilities ``(..., C)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_core.types import pytree

Mean = Float[Array, "... C"]
Covariance = Float[Array, "... C C"]
Link = Callable[[Mean, Covariance], Mean]

_PI_8 = jnp.pi / 8


def variances(covariance: Covariance) -> Mean:
    """The diagonal."""
    return jnp.diagonal(covariance, axis1=-2, axis2=-1)


def probit(mean: Mean, covariance: Covariance) -> Mean:
    r"""$\operatorname{softmax}(\mu_c / \sqrt{1 + \tfrac\pi8 \Sigma_{cc}})$ (doi:10.1162/neco.1992.4.5.720).

    Mean field of order 0 (Lu et al., 2020, arXiv:2006.07584) is the same.
    """
    return jax.nn.softmax(mean / jnp.sqrt(1 + _PI_8 * variances(covariance)), axis=-1)


def sample_gaussian(key: Array, mean: Mean, covariance: Covariance, num_samples: int) -> Float[Array, "N ... C"]:
    """Samples through the symmetric root, which exists for semi-definite covariances too."""
    values, vectors = jnp.linalg.eigh(covariance)
    root = vectors * jnp.sqrt(jnp.maximum(values, 0.0))[..., None, :]
    noise = jax.random.normal(key, (num_samples, *mean.shape), mean.dtype)
    return mean + jnp.einsum("...ij,n...j->n...i", root, noise)


@pytree
@dataclass(frozen=True)
class MonteCarlo:
    """The link that averages the softmax over samples of the logits."""

    key: Array
    num_samples: int = field(metadata={"static": True})

    def __call__(self, mean: Mean, covariance: Covariance) -> Mean:
        """Probabilities; the same noise for every example."""
        samples = sample_gaussian(self.key, mean, covariance, self.num_samples)
        return jax.nn.softmax(samples, axis=-1).mean(0)


def _bridge(mean: Mean, variance: Mean) -> Mean:
    classes = mean.shape[-1]
    # exp(m_c) * sum_k exp(-m_k) depends on differences alone; centring keeps both factors finite.
    centred = mean - mean.mean(-1, keepdims=True)
    spread = jnp.exp(centred) * jnp.exp(-centred).sum(-1, keepdims=True)
    concentration = (1 - 2 / classes + spread / classes**2) / variance
    return concentration / concentration.sum(-1, keepdims=True)


def _sum_zero(mean: Mean, covariance: Covariance) -> tuple[Mean, Mean]:
    """Mean and variances conditioned on the logits adding up to zero, which the softmax cannot see."""
    row = covariance.sum(-1)
    total = row.sum(-1, keepdims=True)
    shifted = mean - row * mean.sum(-1, keepdims=True) / total
    return shifted, variances(covariance) - row**2 / total


def laplace_bridge(mean: Mean, covariance: Covariance) -> Mean:
    """The mean of the Dirichlet that this Gaussian approximates in logits (Hobbhahn et al., arXiv:2003.01227)."""
    return _bridge(*_sum_zero(mean, covariance))


def laplace_bridge_normalized(mean: Mean, covariance: Covariance) -> Mean:
    r"""The Laplace bridge after scaling logits so that variances average $\sqrt{C/2}$ (arXiv:2003.01227)."""
    shifted, variance = _sum_zero(mean, covariance)
    scale = variance.mean(-1, keepdims=True) / jnp.sqrt(mean.shape[-1] / 2)
    return _bridge(shifted / jnp.sqrt(scale), variance / scale)


def _pairwise(mean: Mean, joint_variance: Float[Array, "... C C"]) -> Mean:
    # difference[..., c, k] = m_k - m_c
    difference = mean[..., None, :] - mean[..., :, None]
    scaled = difference / jnp.sqrt(1 + _PI_8 * joint_variance)
    return jax.nn.softmax(-jax.nn.logsumexp(scaled, axis=-1), axis=-1)


def mean_field_1(mean: Mean, covariance: Covariance) -> Mean:
    r"""Order 1 (arXiv:2006.07584): $p_c \propto 1 / \sum_k e^{(m_k - m_c)/\sqrt{1 + \pi(v_c + v_k)/8}}$."""
    v = variances(covariance)
    return _pairwise(mean, v[..., :, None] + v[..., None, :])


def mean_field_2(mean: Mean, covariance: Covariance) -> Mean:
    """Order 2 (arXiv:2006.07584): order 1 with the variance of each difference of logits."""
    v = variances(covariance)
    return _pairwise(mean, v[..., :, None] + v[..., None, :] - 2 * covariance)


def link_by_name(name: str, *, key: Array | None = None, num_samples: int = 100) -> Link:
    """The link of a name, at the edge of the library.

    Raises:
        ValueError: For an unknown name, or for ``"mc"`` without a key.
    """
    links: dict[str, Link] = {
        "probit": probit,
        "bridge": laplace_bridge,
        "bridge_norm": laplace_bridge_normalized,
        "mean_field_0": probit,
        "mean_field_1": mean_field_1,
        "mean_field_2": mean_field_2,
    }
    if name == "mc":
        if key is None:
            raise ValueError("The link 'mc' draws samples and needs a key.")
        return MonteCarlo(key, num_samples)
    if name not in links:
        raise ValueError(f"Unknown link {name!r}. Choose one of 'mc', {', '.join(map(repr, links))}.")
    return links[name]
