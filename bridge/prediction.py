"""From a torch batch through the linearised network and back to a torch tensor."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import torch

from bridge.options import LinkName
from bridge.outputs import OutputLayout
from bridge.tensors import to_jax, to_torch
from bridge.tracing import TracedModel
from jax_core.data.trees import on_device_of
from jax_core.likelihoods import Bernoulli, Categorical, Likelihood
from jax_core.predictive import GaussianOutputs, link_by_name
from jax_core.predictive.links import Link
from jax_core.types import pytree
from jax_core.xla.compiled import as_jit_argument

Finish = Callable[[GaussianOutputs], Any]


def checked_inputs(traced: TracedModel, x: Any) -> Any:
    """A batch as JAX arrays beside the traced weights.

    Raises:
        ValueError: If shapes are not the traced ones, or a value is not finite.
        TypeError: If a dtype is of another kind than the traced one.
    """
    leaves = jax.tree.leaves(x)
    if len(leaves) != len(traced.inputs):
        raise ValueError(f"The model was traced with {len(traced.inputs)} input tensors, {len(leaves)} were given.")
    for leaf in leaves:
        if leaf.is_floating_point() and not torch.isfinite(leaf).all():
            raise ValueError("The inputs hold NaN or infinity. Remove or repair those samples first.")
    arrays = on_device_of(traced.params, to_jax(x))
    fitting = [spec.check(leaf) for spec, leaf in zip(traced.inputs, jax.tree.leaves(arrays), strict=True)]
    return jax.tree.unflatten(jax.tree.structure(arrays), fitting)


def to_torch_like(reference: torch.Tensor, result: Any) -> Any:
    """JAX results as torch tensors on the reference's device and, if it is floating, in its dtype."""
    dtype = reference.dtype if reference.is_floating_point() else None
    return jax.tree.map(lambda leaf: leaf.to(device=reference.device, dtype=dtype), to_torch(result))


@pytree
@dataclass(frozen=True)
class Probabilities:
    """Class probabilities of Gaussian logits, in the core's shape; of several positions, each by itself."""

    link: Link
    temperature: jax.Array | float
    shape: tuple[int, ...] = field(metadata={"static": True})

    def __call__(self, outputs: GaussianOutputs) -> jax.Array:
        """``(B, *shape)``."""
        outputs = outputs.divided(self.temperature)
        classes, batch = self.shape[-1], outputs.mean.shape[0]
        positions = math.prod(self.shape[:-1])
        mean = outputs.mean.reshape(batch, positions, classes)
        blocks = outputs.covariance.reshape(batch, positions, classes, positions, classes)
        own = jnp.moveaxis(jnp.diagonal(blocks, axis1=1, axis2=3), -1, 1)  # (B, positions, C, C)
        return self.link(mean, own).reshape(batch, *self.shape)


@pytree
@dataclass(frozen=True)
class LabelProbabilities:
    """Probability of each label, by the probit approximation."""

    temperature: jax.Array | float

    def __call__(self, outputs: GaussianOutputs) -> jax.Array:
        """``(B, C)``."""
        mean, covariance = outputs.divided(self.temperature)
        variance = jnp.diagonal(covariance, axis1=-2, axis2=-1)
        return jax.nn.sigmoid(mean / jnp.sqrt(1 + math.pi / 8 * variance))


def mean_and_variance(outputs: GaussianOutputs) -> tuple[jax.Array, jax.Array]:
    """The mean and the variance of each output."""
    return outputs.mean, jnp.diagonal(outputs.covariance, axis1=-2, axis2=-1)


@pytree
@dataclass(frozen=True)
class InModelShape:
    """A prediction in the model's shape; a covariance stays one over a sample's flattened outputs.

    Attributes:
        prediction: From Gaussian outputs.
        layout: Of the model's outputs.
        axes: Of outputs in a covariance: ``(1, 2)``, or ``(1, 3)`` in the joint one of a batch.
    """

    prediction: Finish
    layout: OutputLayout = field(metadata={"static": True})
    axes: tuple[int, int] = field(default=(1, 2), metadata={"static": True})

    def __call__(self, outputs: GaussianOutputs) -> Any:
        """Probabilities, a mean and a covariance, or a mean and variances."""
        found = self.prediction(outputs)
        if isinstance(found, GaussianOutputs):
            return self.layout.to_model(found.mean), self.layout.covariance_to_model(found.covariance, *self.axes)
        return jax.tree.map(self.layout.to_model, found)


def prediction_from_gaussian(
    likelihood: Likelihood,
    layout: OutputLayout,
    link: LinkName,
    key: jax.Array,
    num_samples: int,
    *,
    logit_temperature: float = 1.0,
    variances: bool = False,
) -> Finish:
    """What turns Gaussian outputs into predictions in the core's shape: probabilities, or mean and (co)variance."""
    if isinstance(likelihood, Categorical):
        named = link_by_name(link, key=key, num_samples=num_samples)
        return Probabilities(as_jit_argument(named), logit_temperature, layout.core_shape)
    if isinstance(likelihood, Bernoulli):
        return LabelProbabilities(logit_temperature)
    return mean_and_variance if variances else unchanged


def unchanged(outputs: GaussianOutputs) -> GaussianOutputs:
    """Mean and covariance as they are."""
    return outputs


@pytree
@dataclass(frozen=True)
class SamplesInModelShape:
    """Sampled outputs ``(S, B, *core_shape)`` in the model's shape."""

    layout: OutputLayout = field(metadata={"static": True})

    def __call__(self, samples: jax.Array) -> jax.Array:
        """``(S, B, *shape)``."""
        return self.layout.to_model(samples, lead=2)


@pytree
@dataclass(frozen=True)
class OfSamples:
    """Probabilities, or means and variances, of sampled outputs ``(S, B, *core_shape)``, in the model's shape.

    Attributes:
        likelihood: The class of the outputs' likelihood.
        temperature: Of the logits.
        layout: Of the outputs.
    """

    likelihood: type[Likelihood] = field(metadata={"static": True})
    temperature: jax.Array | float
    layout: OutputLayout = field(metadata={"static": True})

    def __call__(self, samples: jax.Array) -> Any:
        """The prediction."""
        probabilities = mean_probabilities(self.likelihood, samples, self.temperature)
        if probabilities is not None:
            return self.layout.to_model(probabilities)
        return self.layout.to_model(samples.mean(0)), self.layout.to_model(_variance(samples))


def mean_probabilities(
    likelihood: type[Likelihood], samples: jax.Array, logit_temperature: jax.Array | float
) -> jax.Array | None:
    """Probabilities ``(B, *core_shape)`` averaged over sampled logits; ``None`` where outputs are no logits."""
    if issubclass(likelihood, Categorical):
        return jax.nn.softmax(samples / logit_temperature, axis=-1).mean(0)
    return jax.nn.sigmoid(samples / logit_temperature).mean(0) if issubclass(likelihood, Bernoulli) else None


def _variance(samples: jax.Array) -> jax.Array:
    return samples.var(0, ddof=min(1, len(samples) - 1))
