"""Other paths through a model's code, which it takes for batches of other sizes: each is traced on its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from bridge.tracing.errors import TraceError
from bridge.tracing.guards import BatchSizes
from bridge.tracing.inputs import Inputs
from bridge.tracing.single import joined, joined_path
from bridge.tracing.traced_model import TracedModel

_SMALL = range(2, 9)  # sizes that are tried whatever the conditions say
_LARGEST = 64  # size that is tried
_PATHS = 4  # beside the first


def with_paths(
    traced: TracedModel,
    inputs: Inputs,
    follow: Callable[[int], TracedModel],
    alone: Callable[[int], TracedModel],
) -> TracedModel:
    """The traced model, with the paths that its code takes for sizes that the first one does not hold for.

    A branch on the batch size is seen as a condition on it. Where sizes near those that the conditions name are left
    out, the model is traced again with such a batch, and the batches that this second trace holds for go to it. What
    torch itself does not take, or cannot be traced, stays refused.

    Args:
        traced: What was traced for the example.
        inputs: The example.
        follow: Traces and verifies the model with so many samples, for other sizes too.
        alone: Traces and verifies the model for batches of this size alone.
    """
    paths = 0
    for size in _candidates(traced.batch):
        if paths == _PATHS:
            break
        if traced.batch.refusal(size) is None:
            continue
        try:
            other = follow(size)
            if other.batch.refusal(size) is None:
                traced = joined_path(traced, other, inputs, size)
            else:  # the code asks for this very size
                traced = joined(traced, alone(size), inputs, size)
        except TraceError:  # the refusal stays, with its condition
            continue
        paths += 1
    return traced


def _candidates(batch: BatchSizes) -> Iterator[int]:
    """Small sizes, and those beside the numbers that the conditions compare with."""
    if len(set(batch.axes)) > 1 or not batch.guards:
        return
    named = {number + i for guard in batch.guards for number in guard.numbers for i in (-1, 0, 1)}
    yield from _SMALL
    yield from sorted(size for size in named if _SMALL.stop <= size <= _LARGEST)
