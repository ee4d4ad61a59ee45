"""Whether a forward is a function of its inputs and parameters, whose derivative is the one torch takes."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.utils import _pytree as torch_pytree

from bridge.tracing.comparison import relative_error, worst_part
from bridge.tracing.errors import ForwardError, MismatchError, TraceError, first_line
from bridge.tracing.inputs import Inputs, batch_size, is_batched
from bridge.tracing.recording import Call, Recording, Seen, record
from bridge.tracing.source import raising_line, shown
from bridge.tracing.state import Snapshot, cloned, same
from bridge.tracing.ties import open_order

# how far two runs may be apart: products on several threads may round otherwise
_REPEATED = {torch.float64: 1e-12, torch.float32: 1e-5}
_FEW = 3
_PACKS = torch.ops.aten._pack_padded_sequence.default
_DRAWS = 8  # runs after the first where random numbers are drawn, which may be equal by chance


@dataclasses.dataclass(frozen=True)
class Observed:
    """What a model did on one sample and on a few."""

    one: Recording | str
    """Or what torch raises for a batch of one."""
    few: Recording | None
    """None where the inputs have no batch, or torch takes none but one."""
    count: int
    """How many samples the few were."""

    @property
    def differs_at_one(self) -> bool:
        """Whether a batch of one takes another way than a longer one, or none."""
        return self.few is not None and (isinstance(self.one, str) or not self.few.same_path(self.one, self.count))

    def explained(self, error: TraceError) -> TraceError:
        """An error with what may be behind it, which its own words do not tell."""
        runs = [run for run in (self.one, self.few) if isinstance(run, Recording)]
        for call in self.ties if isinstance(error, MismatchError) else ():
            return TraceError(f"{open_order(call.operator, call.line)} {error}")
        for call in [call for run in runs for call in run.calls if call.operator is _PACKS][:1]:
            return type(error)(
                f"The model packs its sequences, pack_padded_sequence{shown(call.line)}: how many steps are computed "
                "is then in the data, which no fixed program can follow. Run the layer on the padded sequences and "
                "pick each one's last step, as output[torch.arange(x.shape[0]), lengths - 1]; a backward direction "
                "reads the padding first, so flip each sequence by its length for that."
            )
        for seen in [seen for run in runs for seen in run.complex][:1]:
            return type(error)(
                f"The model computes with complex numbers: {seen.what} ({seen.where}), which are carried only in part. "
                f"Write it with real tensors for the real and the imaginary part. {error}"
            )
        return error

    @property
    def ties(self) -> list[Call]:
        """The calls that ordered equal elements."""
        return [call for run in (self.one, self.few) if isinstance(run, Recording) for call in run.ties]

    @property
    def dtypes(self) -> frozenset[torch.dtype]:
        """Of everything that was computed on the way."""
        runs = [run for run in (self.one, self.few) if isinstance(run, Recording)]
        return frozenset().union(*(run.dtypes for run in runs))


def observe(model: torch.nn.Module, inputs: Inputs, snapshot: Snapshot, *, twice: bool = True) -> Observed:
    """Run torch on one sample and on a few; the first that it takes again, to compare the two, if `twice`.

    Raises:
        TraceError: two runs differ, or gradients are not those of what forward computes.
    """
    size = batch_size(inputs)
    runs: dict[int, Recording] = {}
    failures: dict[int, Exception] = {}
    # a model may want pairs, or so many samples that their number has a meaning: then the whole example
    for count in dict.fromkeys([1, _FEW if size and size > 2 else 2, size or 1]):
        if len(runs) == 2 or (size is None and count > 1):
            break
        try:
            runs[count] = _record(model, inputs, count, snapshot, twice and not runs)
        except TraceError:
            raise
        except Exception as error:  # whatever the model's own code raises
            failures[count] = error
    if not runs:
        error = failures[size or 1]
        raise ForwardError(
            f"The model itself fails on the example: {type(error).__name__}: {first_line(error)}"
            f"{shown(raising_line(error))}"
        ) from error
    one = runs.pop(1) if 1 in runs else first_line(failures[1])
    count = next(iter(runs), 1)
    return Observed(one, runs.get(count), count)


def samples(inputs: Inputs, count: int) -> Inputs:
    """The first samples of a batch, repeated where there are not so many, in memory of their own."""
    size = batch_size(inputs)

    def first(x: Any) -> Any:
        return torch.cat([x] * -(-count // len(x)))[:count] if is_batched(x, size) and len(x) else x

    return cloned(torch_pytree.tree_map(first, inputs))


def _record(model: torch.nn.Module, inputs: Inputs, count: int, snapshot: Snapshot, twice: bool) -> Recording:
    try:
        run = record(model, samples(inputs, count))
        _check(run)
        for _ in range(_DRAWS if run.random else 1) if twice else ():
            _check_same(run, record(model, samples(inputs, count)))
    finally:
        snapshot.restore()
    return run


def _check(run: Recording) -> None:
    for seen in run.own_backward[:1]:
        raise TraceError(
            f"A backward of one's own: {seen.what} ({seen.where}). A traced function has the derivative of what "
            "forward computes. Write the forward so that this is the one you mean, as x + (f(x) - x).detach() for a "
            "straight-through estimator, or give torch.library.custom_op and @bridge.lowers a jax.custom_jvp."
        )
    for seen in run.derivatives[:1]:
        raise TraceError(
            f"The model takes derivatives inside forward: {seen.what} ({seen.where}), which torch.export cannot "
            "capture. Write the derivative out, or leave that part out of the traced model."
        )
    for seen in run.written[:1]:
        raise TraceError(
            f"The forward writes into parameter {seen.what!r} ({seen.where}), so that its result is no function of the "
            "parameters. Compute with a changed copy, as self.weight.clamp(min=0), or write after the optimiser's step."
        )


def _check_same(run: Recording, again: Recording) -> None:
    """Raise where a second run on the same samples gives something else."""
    if len(run.outputs) == len(again.outputs):
        pairs = list(zip(run.outputs, again.outputs, strict=True))
        if all(_agree(a, b) for a, b in pairs):
            return
    if again.random or run.random:
        raise TraceError(_of_chance((*run.random, *again.random)[0]))
    steps = zip(run.calls, again.calls, run.values, again.values, strict=False)
    at = next((shown(a.line) for a, b, x, y in steps if not a.follows(b, 1) or _apart(x, y)), "")
    raise TraceError(
        "The model's forward is no function of its inputs: two calls on the same batch, one after the other, differ"
        f"{at}. A counter, a cache, a buffer written in forward, the clock or random numbers of Python's or NumPy's "
        "would do that; a traced function has one value. Take such state out of forward, or hand it in as an input."
    )


def _agree(a: torch.Tensor, b: torch.Tensor) -> bool:
    tolerance = _REPEATED.get(a.dtype, 1e-3)
    return relative_error(b, a, 1e-30) <= tolerance and worst_part(b, a, 1e-30) <= 100 * tolerance


def _of_chance(seen: Seen) -> str:
    return (
        f"The model draws random numbers in eval mode: {seen.what} ({seen.where}). A traced function has one value for "
        "one input. Pass training=self.training to F.dropout and its like, or hand the numbers in as an input."
    )


def _apart(one: Any, other: Any) -> bool:
    pairs = zip(torch_pytree.tree_leaves(one), torch_pytree.tree_leaves(other), strict=False)
    return any(isinstance(a, torch.Tensor) and (a.shape != b.shape or not same(a, b.detach())) for a, b in pairs)
