"""Single batch sizes that take a path of their own, as one, of which export knows nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from bridge.tracing.errors import BatchSizeError, TraceError
from bridge.tracing.guards import BatchSizes
from bridge.tracing.inputs import Inputs, InputSpec, Signature, make_signature
from bridge.tracing.known import Known, described
from bridge.tracing.repeatable import Observed
from bridge.tracing.traced_model import TracedModel


def with_one(
    traced: TracedModel,
    observed: Observed,
    inputs: Inputs,
    agrees: Callable[[], bool],
    alone: Callable[[], TracedModel],
) -> TracedModel:
    """The traced model, with what it takes to be the model for a batch of one, or a refusal of that size.

    Args:
        traced: What was traced for any number of samples.
        observed: What torch does.
        inputs: The example.
        agrees: Whether the traced model gives what torch gives for one sample.
        alone: Traces and verifies the model for one sample.
    """
    if not (observed.differs_at_one or traced.batch.refusal(1)) or not any(
        spec.shape[:1] == (None,) for spec in traced.inputs
    ):
        return traced
    if isinstance(observed.one, str):
        return _refusing(traced, inputs, f"Torch itself takes no batch of one: {observed.one}")
    try:
        return traced if agrees() else joined(traced, alone(), inputs, 1)
    except TraceError as error:
        return _refusing(
            traced,
            inputs,
            "A batch of one takes another path through the model's code than a longer one, and that path is not "
            f"carried: {error}",
        )


def _refusing(traced: TracedModel, inputs: Inputs, reason: str) -> TracedModel:
    signature, function = _signature(traced, inputs), traced.function

    def checked(buffers: Any, params: Any, *given: Any) -> Any:
        if signature.size(given) == 1:
            raise BatchSizeError(reason)
        return function(buffers, params, *given)

    sizes = dataclasses.replace(traced.batch, refused=(*traced.batch.refused, (1, reason)))
    known = Known(checked, described("refusing", traced.function, reason))
    return dataclasses.replace(traced, function=known, batch=sizes)


def joined(traced: TracedModel, alone: TracedModel, inputs: Inputs, size: int) -> TracedModel:
    """One function of both: a batch of `size` goes to the second."""
    sizes = dataclasses.replace(traced.batch, carried=(*traced.batch.carried, size))
    return _joined(traced, alone, inputs, size, sizes, lambda n: n == size)


def joined_path(traced: TracedModel, other: TracedModel, inputs: Inputs, size: int) -> TracedModel:
    """One function of both: a batch of which the first does not hold goes to the second, traced with `size`."""
    sizes = dataclasses.replace(traced.batch, others=(*traced.batch.others, other.batch))
    return _joined(
        traced, other, inputs, size, sizes, lambda n: bool(traced.batch.refusal(n)) and not other.batch.refusal(n)
    )


def _joined(
    traced: TracedModel,
    other: TracedModel,
    inputs: Inputs,
    size: int,
    sizes: BatchSizes,
    goes_to_other: Callable[[int], bool],
) -> TracedModel:
    signature = _signature(traced, inputs)
    # constants lifted out of a graph go by numbers, which the two do not share
    names = {name: name if _is_shared(traced, other, name) else f"{name} (batch of {size})" for name in other.buffers}

    def function(buffers: Any, params: Any, *given: Any) -> Any:
        n = signature.size(given)
        if n is not None and goes_to_other(n):
            return other.function({name: buffers[key] for name, key in names.items()}, params, *given)
        return traced.function({name: buffers[name] for name in traced.buffers}, params, *given)

    buffers = {**{names[name]: value for name, value in other.buffers.items()}, **traced.buffers}
    parts = traced.function, other.function, names, sorted(traced.buffers), size
    known = Known(function, described("joined", *parts, repr(sizes)))  # which of both it is hangs on the sizes
    return dataclasses.replace(traced, buffers=buffers, function=known, batch=sizes)


def _is_shared(traced: TracedModel, alone: TracedModel, name: str) -> bool:
    value = traced.buffers.get(name)
    other = alone.buffers[name]
    alike = value is not None and value.shape == other.shape and value.dtype == other.dtype
    return alike and bool((value == other).all())


def _signature(traced: TracedModel, inputs: Inputs) -> Signature:
    specs = iter(traced.inputs)
    flags = [isinstance(leaf, InputSpec) and next(specs).shape[:1] == (None,) for leaf in make_signature(inputs).leaves]
    return make_signature(inputs, flags)
