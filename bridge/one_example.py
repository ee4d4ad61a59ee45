"""A traced model as the core takes models: a function of one example."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from bridge.losses import Loss
from bridge.outputs import OutputLayout, single_output
from bridge.tracing import TracedModel
from jax_core.data.trees import flattener
from jax_core.types import Params, pytree

SUBNETWORK = "subnetwork"
"""The name of weights chosen one by one."""


@pytree
@dataclass(frozen=True)
class OneExample:
    """A traced model as ``model_fn(input, params)`` of one example; its buffers are data of the pytree.

    Attributes:
        function: Of the traced model, on batches.
        buffers: Of the traced model.
        layout: Of the outputs, which come with classes last.
        transform: Applied to the outputs, see :class:`~bridge.losses.Loss`.
    """

    function: Callable[..., Any] = field(metadata={"static": True})
    buffers: dict[str, jax.Array]
    layout: OutputLayout = field(metadata={"static": True})
    transform: Callable[[jax.Array], jax.Array] | None = field(default=None, metadata={"static": True})
    chosen_lowerings = True  # the tracer's: nothing is rewritten for the backend

    @classmethod
    def of(cls, traced: TracedModel, layout: OutputLayout, loss: Loss) -> OneExample:
        """The view of a traced model."""
        return cls(traced.function, traced.buffers, layout, loss.transform)

    def __call__(self, x: Any, params: Any) -> jax.Array:
        """The output for one example.

        Raises:
            TypeError: If the model returns anything but one tensor.
        """
        # where a batch of one loses its batch axis, the example goes in twice
        copies = 1 if self.layout.of_one is None else 2
        batch = jax.tree.map(lambda leaf: jnp.stack([leaf] * copies), x)
        outputs = self.function(self.buffers, params, *(batch if isinstance(batch, tuple | list) else (batch,)))
        return self.in_core(single_output(outputs))[0]

    @property
    def without_data(self) -> OneExample:
        """How its outputs lie, alone."""
        return replace(self, buffers={})

    def in_core(self, outputs: jax.Array) -> jax.Array:
        """A batch of the model's outputs as the core has them."""
        moved = self.layout.to_core(outputs)
        return moved if self.transform is None else self.transform(moved)


@pytree
@dataclass(frozen=True)
class OfSomeWeights:
    """A model as a function of some of its weights, those at ``places`` of all of them flattened; the rest is data.

    Attributes:
        model: Of all weights.
        weights: All of them.
        places: Where the some lie.
    """

    model: OneExample
    weights: Params
    places: Int[jax.Array, " K"]
    chosen_lowerings = True

    @property
    def params(self) -> Params:
        """The weights that it is a function of."""
        return {SUBNETWORK: flattener(self.weights)[0](self.weights)[self.places]}

    def __call__(self, x: Any, params: Any) -> jax.Array:
        """The output for one example."""
        flatten, unflatten = flattener(self.weights)
        return self.model(x, unflatten(flatten(self.weights).at[self.places].set(params[SUBNETWORK])))

    @property
    def layout(self) -> OutputLayout:
        """Of the outputs."""
        return self.model.layout

    @property
    def without_data(self) -> OneExample:
        """How its outputs lie, alone."""
        return self.model.without_data

    def in_core(self, outputs: jax.Array) -> jax.Array:
        """A batch of the model's outputs as the core has them."""
        return self.model.in_core(outputs)


CoreModel: TypeAlias = OneExample | OfSomeWeights


def model_and_params(
    traced: TracedModel, layout: OutputLayout, loss: Loss, places: np.ndarray | None
) -> tuple[CoreModel, Params]:
    """A traced model as the core takes models, and the weights that it is a function of."""
    model = OneExample.of(traced, layout, loss)
    if places is None:
        return model, traced.params
    some = OfSomeWeights(model, traced.params, jnp.asarray(places))
    return some, some.params
