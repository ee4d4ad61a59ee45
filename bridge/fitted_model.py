"""A traced model with the curvature at its weights: what a fit leaves behind."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from bridge.hyperparameters import Value, in_core
from bridge.losses import Loss
from bridge.one_example import CoreModel, model_and_params
from bridge.outputs import OutputLayout
from bridge.parameter_order import ParameterOrder
from bridge.subset import Subset
from bridge.template import InputTemplate
from bridge.tensors import to_jax
from bridge.tracing import TracedModel
from bridge.weights import WeightWatch
from jax_core.data.batches import Batch
from jax_core.data.passes import LoaderPasses
from jax_core.fitted import Fitted
from jax_core.frozen import FeaturePasses, Split, features, split
from jax_core.gradients.loss_gradient import loss_gradient
from jax_core.likelihoods import Likelihood
from jax_core.operators import Operator
from jax_core.posterior import Posterior, prior_vector
from jax_core.types import Params
from jax_core.xla.chunks import example_shapes


@dataclass(frozen=True)
class FittedModel:
    """A traced model with the curvature at its weights.

    Attributes:
        traced: The model in JAX.
        fitted: The curvature.
        template: Inputs by their shapes and types.
        layout: Of the outputs.
        loss: What was fitted; noise per output is in its likelihood.
        watch: Notices when the module's weights change.
        subset: What is covered.
        look: What the trace depends on beside the weights; nothing for one that was made without data.
        places: Of a subnetwork, where its weights lie among those that are traced, all flattened.
        prior_factor: What multiplies a prior precision: of a posterior on a subset of the data, how many samples one of
            it stands for, as laplace-torch has it.
        seen: Some samples of the data; none of a fit that was read from a file.
        again: Passes over all of the data, of each fit that is added up here; none if they cannot be read again.
        at_lengths: The same for sequences of other lengths, made as they are met.
        singles: Of comparisons, the same for inputs one by one, by their shapes.
        token_axes: Of lengths to which batches were filled up, the axis of the outputs along the tokens, if any.
    """

    traced: TracedModel
    fitted: Fitted
    template: InputTemplate
    layout: OutputLayout
    loss: Loss
    watch: WeightWatch
    subset: Subset
    look: tuple[Any, ...] = ()
    seen: tuple[Batch, ...] = ()
    places: np.ndarray | None = None
    prior_factor: float = 1.0
    again: tuple[Callable[[], LoaderPasses], ...] = field(default=(), repr=False, compare=False)
    at_lengths: dict[int, FittedModel] = field(default_factory=dict, repr=False, compare=False)
    singles: dict[Any, FittedModel] = field(default_factory=dict, repr=False, compare=False)
    token_axes: dict[int, int | None] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def is_wide(self) -> bool:
        """Whether there are weights in float64."""
        return any(leaf.dtype == np.float64 for leaf in self.traced.params.values())

    @cached_property
    def _view(self) -> tuple[CoreModel, Params]:
        return model_and_params(self.traced, self.layout, self.loss, self.places)

    @property
    def model_fn(self) -> CoreModel:
        """The model of one example."""
        return self._view[0]

    @property
    def predicted(self) -> Likelihood:
        """What predictions are about: the likelihood, but for rewards that are known from comparisons alone."""
        return self.loss.predicted or self.loss.likelihood

    @property
    def params(self) -> Params:
        """The trained weights that are covered."""
        return self._view[1]

    @cached_property
    def split(self) -> Split:
        """The model as what no covered parameter reaches and the rest."""
        return split(self.model_fn, self.params, example_shapes(to_jax(self.template.example())))

    def features(self, inputs: Any) -> Any:
        """What the head of :attr:`split` takes, for a batch of inputs."""
        return features(self.split.trunk, inputs)

    def for_head(self, batches: LoaderPasses) -> LoaderPasses:
        """Passes as the head of :attr:`split` takes them."""
        trunk = self.split.trunk
        return batches if trunk is None else FeaturePasses(trunk, batches)

    @cached_property
    def loss_gradient(self) -> tuple[Array, int] | None:
        """The gradient of the summed loss over the data, which are read once more, and how many samples they are."""
        if not self.again:
            return None
        batches = itertools.chain.from_iterable(self.for_head(passes()) for passes in self.again)
        return loss_gradient(self.split.head, self.params, self.loss.likelihood, batches)

    @property
    def jacobian_bytes(self) -> int:
        """What the Jacobian of one example's outputs takes."""
        leaves = jax.tree.leaves(self.params)
        return self.fitted.outputs_per_sample * sum(leaf.nbytes for leaf in leaves)

    def with_more(self, other: FittedModel, *, rank: int | None = None) -> FittedModel:
        """The fit of both fits' data, which are at the same weights; a low rank keeps so many eigenpairs.

        Raises:
            TypeError: If their curvatures have no sum.
        """
        both = {"seen": (*self.seen, *other.seen), "again": (*self.again, *other.again)}
        return replace(other, fitted=self.fitted.with_more(other.fitted, rank=rank), **both)

    def posterior(self, prior: Value, scale: float, order: ParameterOrder) -> Posterior:
        """The posterior under a prior, with the curvature times ``scale``."""
        vector = prior_vector(in_core(prior * self.prior_factor, order.to_core), self.params)
        return _posterior(self.params, self.fitted.curvature, scale, vector)


@jax.jit
def _posterior(mean: Params, curvature: Operator, scale: jax.Array | float, prior: jax.Array) -> Posterior:
    return Posterior.create(mean, curvature.rescale(scale), prior)
