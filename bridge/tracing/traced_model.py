"""The result of tracing: a pure JAX function with its parameters and constants beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Array

Inputs = tuple[Any, ...] | Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """What the traced function expects of one tensor among its inputs."""

    name: str
    shape: tuple[int | None, ...]
    """The traced shape; None stands for the batch axis, which may have any length."""
    dtype: str

    def check(self, value: Any) -> Array:
        """Return `value` as an array of this dtype, or raise what is wrong with it."""
        if isinstance(value, torch.Tensor):
            raise TypeError(f"Input {self.name!r} is a torch tensor. Convert it first: bridge.to_jax(x).")
        array = jnp.asarray(value)
        shape = array.shape
        fits = len(shape) == len(self.shape) and all(
            want is None or want == got for want, got in zip(self.shape, shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("batch" if n is None else str(n) for n in self.shape)
            raise ValueError(
                f"Input {self.name!r} has shape {shape}, but the model was traced for ({wanted}). "
                "Give a batch of such inputs, or trace the model again with an example of this shape."
            )
        wanted = jnp.dtype(self.dtype)
        if _kind(array.dtype) != _kind(wanted):
            raise TypeError(
                f"Input {self.name!r} has dtype {array.dtype}, but the model was traced for {wanted}. "
                f"Convert it first: x.astype({str(wanted)!r})."
            )
        return array.astype(jax.dtypes.canonicalize_dtype(wanted))


@jax.tree_util.register_dataclass
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
    tracer: str = dataclasses.field(metadata={"static": True})

    def apply(self, params: Mapping[str, Array], *inputs: Any) -> Any:
        """The model's outputs at `params`, which may differ from the traced ones, on a batch of inputs."""
        return self.function(self.buffers, params, *inputs)


def _kind(dtype: np.dtype) -> str:
    for kind in (jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating):
        if jnp.issubdtype(dtype, kind):
            return kind.__name__
    return str(dtype)
