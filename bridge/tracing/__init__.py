"""From `torch.nn.Module` to a pure JAX function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch

from bridge.tracing.checks import check, unwrap
from bridge.tracing.errors import MismatchError, MissingLoweringError, TraceError
from bridge.tracing.explanation import Explanation, explain
from bridge.tracing.exported import trace_export
from bridge.tracing.inputs import Inputs
from bridge.tracing.lowering.registry import lowers
from bridge.tracing.modes import evaluating
from bridge.tracing.traced_model import TracedModel
from bridge.tracing.verify import verify as _verify

__all__ = [
    "Explanation",
    "MismatchError",
    "MissingLoweringError",
    "TraceError",
    "TracedModel",
    "explain",
    "lowers",
    "trace",
]

Tracer = Literal["export", "torch2jax", "auto"]


def trace(
    model: torch.nn.Module,
    example_inputs: torch.Tensor | tuple[Any, ...] | Mapping[str, Any],
    *,
    tracer: Tracer = "export",
    verify: bool = True,
) -> TracedModel:
    """Turn `model` into a pure JAX function, compared with torch on the example.

    The model is read, never changed, and traced as in eval mode.

    Args:
        model: any `torch.nn.Module`.
        example_inputs: a batch: one tensor, a tuple of forward's inputs, or a mapping of its keyword inputs.
            Axis 0 of every tensor as long as the first one is the batch, which may have any length afterwards.
        tracer: `"export"` reads the graph that `torch.export` captures, `"torch2jax"` runs the model through that
            package (GPL-3.0), `"auto"` takes the second where the first cannot capture the model.
        verify: compare outputs and gradients with torch on the example, and raise `MismatchError` on a difference
            (relative, 1e-4 in float32, 1e-9 in float64). Gradients in float32 may be twice as far from float64's as
            torch's own are for weights moved by a few roundings, if those are within 1e-2; any other difference is
            judged again in float64.

    Raises:
        MissingLoweringError: an operator has no JAX lowering; the message shows how to register one.
        MismatchError: the traced function does not give what torch gives.
    """
    inputs: Inputs = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else example_inputs
    run = _tracer(tracer)
    model = unwrap(model) if isinstance(model, torch.nn.Module) else model
    check(model, inputs)
    with evaluating(model):
        traced = run(model, inputs)
        if verify:
            _verify(traced, model, inputs, run)
    return traced


def _tracer(name: Tracer) -> Callable[[torch.nn.Module, Inputs], TracedModel]:
    if name == "export":
        return trace_export
    if name == "torch2jax":
        from bridge.tracing.torch2jax import trace_torch2jax  # GPL-3.0: only where it is asked for

        return trace_torch2jax
    if name == "auto":
        return _trace_auto
    raise ValueError(f"tracer={name!r}: choose 'export', 'torch2jax' or 'auto'.")


def _trace_auto(model: torch.nn.Module, inputs: Inputs) -> TracedModel:
    try:
        return trace_export(model, inputs)
    except TraceError as error:
        try:
            return _tracer("torch2jax")(model, inputs)
        except TraceError as second:
            raise TraceError(f"{error}\nNor by torch2jax: {second}") from error
