"""From `torch.nn.Module` to a pure JAX function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch

from bridge.tracing.capture import UNCOMMON
from bridge.tracing.checks import check, unwrap
from bridge.tracing.errors import BatchSizeError, MismatchError, MissingLoweringError, TraceError
from bridge.tracing.explanation import Explanation, explain
from bridge.tracing.exported import trace_export
from bridge.tracing.inputs import Inputs, batch_size
from bridge.tracing.lowering.registry import lowers
from bridge.tracing.modes import evaluating
from bridge.tracing.paths import with_paths
from bridge.tracing.repeatable import Observed, observe, samples
from bridge.tracing.single import joined, with_one
from bridge.tracing.state import cloned, unchanged
from bridge.tracing.ties import open_order
from bridge.tracing.traced_model import TracedModel
from bridge.tracing.verify import Judge

__all__ = [
    "BatchSizeError",
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

    Example:
        >>> traced = bridge.trace(model, example_batch)
        >>> sorted(traced.params)
        ['0.bias', '0.weight', '2.bias', '2.weight']
        >>> jax.jit(traced.apply)(traced.params, to_jax(x)).shape
        (5, 3)
    """
    inputs: Inputs = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else example_inputs
    run = _tracer(tracer)
    model = unwrap(model) if isinstance(model, torch.nn.Module) else model
    check(model, inputs)
    with evaluating(model), unchanged(model) as snapshot:
        observed = observe(model, inputs, snapshot, twice=verify)
        try:
            traced = snapshot.around(lambda: run(model, cloned(inputs)))
        except TraceError as error:
            raise observed.explained(error) from error
        judge = Judge(model, run, snapshot, observed.dtypes)
        if traced.tracer == "export":  # others run the model's own code for each size
            traced = _all_sizes(traced, observed, judge, inputs, verify)
        if verify:
            try:
                judge.verify(traced, inputs)
            except MismatchError as error:
                raise observed.explained(error) from error
            ties = observed.ties
            if ties and judge.follows_order(traced, inputs):
                raise TraceError(f"{open_order(ties[0].operator, ties[0].line)} Another order changes the results.")
        return traced


def _all_sizes(traced: TracedModel, observed: Observed, judge: Judge, inputs: Inputs, verify: bool) -> TracedModel:
    """The traced model with the batch sizes that export sets apart: one sample, and an example that is too short."""

    def follow(count: int, *, dynamic: bool = True) -> TracedModel:
        some = samples(inputs, count)
        found = judge.snapshot.around(lambda: trace_export(judge.model, some, dynamic=dynamic))
        if verify and not (dynamic and found.batch.refusal(count)):
            judge.verify(found, some)
        return found

    alone = partial(follow, dynamic=False)

    def agrees() -> bool:
        return verify and judge.agrees(traced, samples(inputs, 1))

    size = batch_size(inputs)
    whole = traced
    if size is not None and size > 1 and traced.batch.refusal(size):
        whole = joined(traced, alone(size), inputs, size)
        if verify:
            judge.verify(traced, samples(inputs, -(-UNCOMMON // size) * size))
    if size is not None:
        whole = with_paths(whole, inputs, follow, alone)
    return with_one(whole, observed, inputs, agrees, lambda: alone(1))


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
