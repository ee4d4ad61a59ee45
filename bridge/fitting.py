"""From a torch module and its loader to a reduced curvature: trace, check the data, fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from torch import nn

from bridge.dataloader import batch_check, passes_over, read_first
from bridge.placement import compiling_for, device_of, place_of
from bridge.prediction import OneExample, tensors
from bridge.tensors import to_jax
from bridge.tracing import TracedModel, trace
from jax_core.data.batches import Batch
from jax_core.data.passes import Cache, LoaderPasses
from jax_core.data.trees import get_size
from jax_core.fit import FitOptions, Fitted, fit_curvature
from jax_core.likelihoods import Likelihood
from jax_core.operators import Operator
from jax_core.posterior import Posterior, prior_vector
from jax_core.types import Params

Tracer: TypeAlias = Literal["export", "torch2jax", "auto"]


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How model and loader are read: the tracer, the cache of ``LoaderPasses``, and whether progress is shown."""

    tracer: Tracer = "export"
    cache: Cache = "auto"
    cache_bytes: int = 2**31
    progress: bool = True


@dataclass(frozen=True)
class FittedModel:
    """A traced model, the curvature at its weights, and the two inputs that it was traced on, as torch tensors."""

    traced: TracedModel
    fitted: Fitted
    example: Any

    @property
    def model_fn(self) -> OneExample:
        """The model of one example."""
        return OneExample.of(self.traced)

    @property
    def params(self) -> Params:
        """The trained weights."""
        return self.traced.params

    @property
    def jacobian_bytes(self) -> int:
        """What the Jacobian of one example's outputs takes."""
        leaves = jax.tree.leaves(self.params)
        return self.fitted.outputs_per_sample * sum(leaf.nbytes for leaf in leaves)

    def posterior(self, prior_precision: Any, scale: float) -> Posterior:
        """The posterior under a prior, with the curvature times ``scale``."""
        return _posterior(self.params, self.fitted.curvature, scale, prior_vector(prior_precision, self.params))


def fit_module(
    model: nn.Module,
    loader: Iterable[Any],
    likelihood: Likelihood,
    options: FitOptions,
    reading: ReadOptions,
    *,
    prior_precision: Any,
    seed: int,
    num_total_samples: int | None,
) -> FittedModel:
    """Trace the model on the loader's first batch, check all data, then reduce the curvature.

    Raises:
        ValueError: If data, rank or prior do not fit the model.
        TypeError: If batches or targets are of the wrong type.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "The model has no parameter with requires_grad=True, so there is nothing to be uncertain about. Set it on "
            "the parameters that the posterior should cover."
        )
    first = read_first(loader)
    example = jax.tree.map(lambda leaf: leaf[:2], tensors(first.input))
    traced = trace_for_fit(model, example, reading.tracer)
    params = traced.params
    prior_vector(prior_precision, params)
    options.check(get_size(params))
    passes = checked_passes(loader, first, traced, likelihood, reading)
    passes.preload()
    with compiling_for(place_of(params)):
        fitted = fit_curvature(
            OneExample.of(traced),
            params,
            likelihood,
            passes,
            options,
            key=jax.random.key(seed),
            num_total_samples=num_total_samples,
        )
    return FittedModel(traced, fitted, example)


def trace_for_fit(model: nn.Module, example: Any, tracer: Tracer) -> TracedModel:
    """The model as traced on two inputs, with weights of its own: those of the module may be trained on."""
    device = device_of(model)
    example = jax.tree.map(lambda leaf: leaf.to(device), example)
    traced = trace(model, tuple(example) if isinstance(example, list) else example, tracer=tracer)
    params, buffers = _copy((traced.params, traced.buffers))
    return dataclasses.replace(traced, params=params, buffers=buffers)


@jax.jit
def _posterior(mean: Params, curvature: Operator, scale: jax.Array | float, prior: jax.Array) -> Posterior:
    return Posterior.create(mean, curvature.rescale(scale), prior)


@jax.jit
def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


def checked_passes(
    loader: Iterable[Any], first: Batch, traced: TracedModel, likelihood: Likelihood, reading: ReadOptions
) -> LoaderPasses:
    """Passes over a loader that begins with ``first``; every batch must suit the traced model and the loss.

    Raises:
        ValueError: By the passes, for a batch that does not.
        TypeError: If the model returns anything but one tensor.
    """
    one = jax.tree.map(lambda leaf: to_jax(leaf[0]), tensors(first.input))
    output = jax.eval_shape(OneExample.of(traced), one, traced.params)
    return passes_over(
        loader,
        batch_check([spec.shape[1:] for spec in traced.inputs], output.shape, likelihood),
        params=traced.params,
        cache=reading.cache,
        cache_bytes=reading.cache_bytes,
        progress=reading.progress,
    )
