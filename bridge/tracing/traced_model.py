"""The result of tracing: a pure JAX function with its parameters and constants beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Array

from bridge.tracing.guards import BatchSizes
from bridge.tracing.inputs import InputSpec
from jax_core.types import pytree


@pytree
@dataclasses.dataclass(frozen=True)
class TracedModel:
    """A torch model as a pure JAX function.

    `apply(params, *inputs)` takes a batch of any size and is safe under `jit`, `vmap`, `jvp`, `vjp` and
    `linearize`. For the prediction of one example, `jax.vmap(lambda x: traced.apply(params, x[None])[0])`.
    A model traced with keyword inputs takes one mapping: `apply(params, {"input_ids": ids})`. Outputs keep
    their structure, except that a dataclass comes back as the dict of its fields.
    """

    params: dict[str, Array]
    """The parameters with `requires_grad=True`, by torch's names; tied ones once, by their first name."""
    buffers: dict[str, Array]
    """Frozen parameters, buffers and constants: passed as arguments, never compiled in as literals."""
    function: Callable[..., Any] = dataclasses.field(metadata={"static": True})
    """`function(buffers, params, *inputs)`, pure."""
    inputs: tuple[InputSpec, ...] = dataclasses.field(metadata={"static": True})
    """What is expected of each tensor among the inputs; shapes hold None for the batch axis."""
    tracer: str = dataclasses.field(metadata={"static": True})
    """The tracer that made it: "export" or "torch2jax"."""
    batch: BatchSizes = dataclasses.field(default=BatchSizes(), metadata={"static": True})
    """For which batch sizes it is the model: `traced.batch.refusal(n)` is None, or the reason why not."""

    def apply(self, params: Mapping[str, Array], *inputs: Any) -> Any:
        """The model's outputs at `params`, which may differ from the traced ones, on a batch of inputs."""
        return self.function(self.buffers, params, *inputs)
