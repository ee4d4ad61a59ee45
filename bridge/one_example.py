"""A traced model as the core takes models: a function of one example."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from bridge.losses import Loss
from bridge.outputs import OutputLayout, single_output
from bridge.tracing import TracedModel


@jax.tree_util.register_dataclass
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

    def in_core(self, outputs: jax.Array) -> jax.Array:
        """A batch of the model's outputs as the core has them."""
        moved = self.layout.to_core(outputs)
        return moved if self.transform is None else self.transform(moved)
