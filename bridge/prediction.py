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
from bridge.placement import compiling_for, place_of
from bridge.tensors import to_jax, to_torch
from bridge.tracing import TracedModel
from jax_core.data.trees import on_device_of
from jax_core.likelihoods import Bernoulli, Categorical, Likelihood
from jax_core.predictive import (
    GaussianOutputs,
    linearized_predictive,
    link_by_name,
    marginal_predictive,
    moments,
)
from jax_core.predictive.links import Link
from jax_core.xla.compiled import as_jit_argument

_JACOBIAN_BYTES = 2**30  # of one example
_BY_VARIANCE: tuple[LinkName, ...] = ("probit", "mean_field_0")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OneExample:
    """A traced model as ``model_fn(input, params)`` of one example; its buffers are data of the pytree."""

    function: Callable[..., Any] = field(metadata={"static": True})
    buffers: dict[str, jax.Array]
    chosen_lowerings = True  # the tracer's: nothing is rewritten for the backend

    @classmethod
    def of(cls, traced: TracedModel) -> OneExample:
        """The view of a traced model."""
        return cls(traced.function, traced.buffers)

    def __call__(self, x: Any, params: Any) -> jax.Array:
        """The output for one example.

        Raises:
            TypeError: If the model returns anything but one tensor.
        """
        batch = jax.tree.map(lambda leaf: leaf[None], x)
        outputs = self.function(self.buffers, params, *(batch if isinstance(batch, tuple | list) else (batch,)))
        if not isinstance(outputs, jax.Array):
            raise TypeError(
                f"The model returns {type(outputs).__name__}; a likelihood needs one tensor of outputs per batch. Wrap "
                "the model in a module whose forward returns that tensor."
            )
        return outputs[0]


def tensors(tree: Any) -> Any:
    """Inputs with every leaf a tensor; numpy arrays are wrapped.

    Raises:
        TypeError: For a leaf that is neither.
    """

    def tensor(leaf: Any) -> torch.Tensor:
        if isinstance(leaf, str | bytes) or leaf is None:
            raise TypeError(f"The inputs hold {leaf!r}. Give torch tensors or numpy arrays, as the model takes them.")
        return leaf if isinstance(leaf, torch.Tensor) else torch.as_tensor(leaf)

    return jax.tree.map(tensor, tree)


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


def predict_batch(traced: TracedModel, x: Any, predictive: Callable[..., Any], last: Any = None) -> Any:
    """What ``predictive(model_fn)(inputs)``, and ``last`` of it, give for a batch, as torch tensors like it."""
    batch = tensors(x)
    inputs = checked_inputs(traced, batch)
    with compiling_for(place_of(traced.params)):
        result = predictive(OneExample.of(traced))(inputs)
        return to_torch_like(jax.tree.leaves(batch)[0], result if last is None else last(result))


def to_torch_like(reference: torch.Tensor, result: Any) -> Any:
    """JAX results as torch tensors on the reference's device and, if it is floating, in its dtype."""
    dtype = reference.dtype if reference.is_floating_point() else None
    return jax.tree.map(lambda leaf: leaf.to(device=reference.device, dtype=dtype), to_torch(result))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Probabilities:
    """Class probabilities of Gaussian logits."""

    link: Link

    def __call__(self, outputs: GaussianOutputs) -> jax.Array:
        """``(B, C)``."""
        return self.link(outputs.mean, outputs.covariance)


def bernoulli_probabilities(outputs: GaussianOutputs) -> jax.Array:
    """Probability of each label, by the probit approximation."""
    variance = jnp.diagonal(outputs.covariance, axis1=-2, axis2=-1)
    return jax.nn.sigmoid(outputs.mean / jnp.sqrt(1 + math.pi / 8 * variance))


def prediction_from_gaussian(
    likelihood: Likelihood, link: LinkName, key: jax.Array, num_samples: int
) -> Callable[..., Any]:
    """What turns Gaussian outputs into what the user asked for: probabilities, or mean and covariance."""
    if isinstance(likelihood, Categorical):
        return Probabilities(as_jit_argument(link_by_name(link, key=key, num_samples=num_samples)))
    return bernoulli_probabilities if isinstance(likelihood, Bernoulli) else tuple


def predictive_for(link: LinkName, likelihood: Likelihood, jacobian_bytes: int) -> Callable[..., Any]:
    """The exact predictive, or where one example's Jacobian is too large, that of the variances if they suffice.

    Raises:
        ValueError: If they do not.
    """
    if jacobian_bytes <= _JACOBIAN_BYTES:
        return linearized_predictive
    if isinstance(likelihood, Bernoulli) or (isinstance(likelihood, Categorical) and link in _BY_VARIANCE):
        return marginal_predictive
    raise ValueError(
        f"The exact covariance of one example's outputs needs a Jacobian of {jacobian_bytes / 2**30:.1f} GiB. Use "
        f"link_approx='probit', which takes variances alone, pred_type='nn', or a last-layer posterior: set "
        "requires_grad=False on the other parameters before fit."
    )


def prediction_from_samples(likelihood: Likelihood) -> Callable[[jax.Array], Any]:
    """What turns sampled outputs ``(S, B, C)`` into the same kind of prediction."""
    if isinstance(likelihood, Categorical):
        return lambda samples: jax.nn.softmax(samples, axis=-1).mean(0)
    if isinstance(likelihood, Bernoulli):
        return lambda samples: jax.nn.sigmoid(samples).mean(0)
    return lambda samples: tuple(moments(samples))
