"""Hold a traced model against torch: outputs, and gradients with a random cotangent."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import Any

import jax
import torch
from torch.utils import _pytree as torch_pytree

from bridge.tracing.comparison import norm, part_errors, relative_error, worst_part
from bridge.tracing.errors import BatchSizeError, MismatchError
from bridge.tracing.inputs import Inputs
from bridge.tracing.recording import record
from bridge.tracing.results import Results, torch_results, traced_results
from bridge.tracing.state import Snapshot, cloned
from bridge.tracing.ties import ReversedTies
from bridge.tracing.traced_model import TracedModel

# of outputs and of gradients; torch's own derivatives of hardsigmoid and celu hold float32 constants, 3e-8 off
_TOLERANCE = {
    torch.float64: (1e-9, 1e-7),
    torch.float32: (1e-4, 1e-4),
    torch.float16: (2e-2, 5e-2),
    torch.bfloat16: (1e-1, 2e-1),
}
# of parts, and how small a part may be beside the whole before it is taken for rounding: outputs', gradients'
_PARTS = {
    torch.float64: (1e-6, 1e-7, 1e-7),
    torch.float32: (1e-3, 0.0, 3e-3),
    torch.float16: (1e-1, 1e-2, 1e-1),
    torch.bfloat16: (5e-1, 1e-1, 1e-1),
}
_OWN_ROUNDING = 1e-2  # of torch's gradients, above which it is no measure for others'
_OF_ROUNDING = 8.0  # times as far as torch's own results with moved weights: a part that rounding explains
_ROUNDINGS, _DRAWS = 4.0, 5  # how far weights are moved to see it, in units of the dtype's epsilon, and how often
_TINY = 1e-300  # no division by zero
_NOTHING = 1e-3  # an output of this size is compared as if it were of this size, in float64
_VANISHING = 1e-4  # of the outputs: a largest gradient below is compared with this instead
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

Parts = list[tuple[torch.Tensor, torch.Tensor]]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Relative errors of a traced model on one batch."""

    outputs: float
    gradients: float
    worst: str
    """The parameter whose gradient is furthest off."""
    output_parts: float = 0.0
    """The largest error of a row, a column or a channel, relative to that part alone."""
    gradient_parts: float = 0.0

    def within(self, dtype: torch.dtype) -> bool:
        """Whether the errors are no more than rounding in `dtype` explains (a NaN is)."""
        outputs, gradients = _TOLERANCE[dtype]
        return self.outputs <= outputs and self.gradients <= gradients and self.parts_within(dtype)

    def parts_within(self, dtype: torch.dtype) -> bool:
        """Whether no part is further off than rounding in `dtype` explains."""
        return self.output_parts <= _PARTS[dtype][0] and self.gradient_parts <= _PARTS[dtype][0]

    def __str__(self) -> str:
        return (
            f"outputs {self.outputs:.1e}, gradients {self.gradients:.1e} (worst: {self.worst or 'none'}); of the worst "
            f"row, column or channel, outputs {self.output_parts:.1e}, gradients {self.gradient_parts:.1e}"
        )


@dataclasses.dataclass(frozen=True)
class Judge:
    """Compares traced models with `model`, which stays as the snapshot holds it."""

    model: torch.nn.Module
    trace: Callable[[torch.nn.Module, Inputs], TracedModel]
    """How to trace a copy of the model in float64."""
    snapshot: Snapshot
    dtypes: frozenset[torch.dtype] = frozenset()
    """Those of what the model computes on the way."""

    def agrees(self, traced: TracedModel, inputs: Inputs) -> bool:
        """Whether `traced` is the model on these inputs."""
        try:
            self.verify(traced, inputs)
        except (MismatchError, BatchSizeError):
            return False
        return True

    def verify(self, traced: TracedModel, inputs: Inputs) -> None:
        """Raise `MismatchError` where the traced model is not the torch model.

        Networks with kinks amplify the rounding of float32: outputs agree and gradients do not, torch's own neither.
        So gradients no more than twice as far from torch's in float64 as torch's own, for weights moved by rounding,
        are accepted, and parts no further off than they; any other mismatch is judged again in float64, on copies of
        the model and the trace.
        """
        wanted, cotangents = self._torch(self.model, inputs, traced.params)
        got = traced_results(traced, inputs, cotangents)
        dtype = compute_dtype(self.model, inputs, self.dtypes)
        comparison = _compare(got, wanted, dtype)
        if not math.isfinite(comparison.gradients):
            # unoptimised, XLA rounds a maximum otherwise than what it is compared with: as a user's own program
            got = traced_results(traced, inputs, cotangents, cheap=False)
            comparison = _compare(got, wanted, dtype)
        if comparison.within(dtype):
            return
        again = ""
        if dtype is not torch.float64:
            double = _copied(self.model).double()
            exact, wide = self._torch(double, _double(inputs), traced.params, cotangents)
            draws = _rounded(self.model, inputs, traced.params, cotangents)
            if self._is_rounded(got, wanted, exact, comparison, dtype, draws):
                return
            in_double, coarsest = self._in_double(double, _double(inputs), exact, wide)
            if in_double.within(coarsest):
                return
            again = f" In float64: {in_double}."
        # unoptimised, XLA computes one value in two places with two roundings, which exact ties take for two values
        if _compare(traced_results(traced, inputs, cotangents, cheap=False), wanted, dtype).within(dtype):
            return
        raise MismatchError(
            f"The traced model differs from torch by more than {_TOLERANCE[dtype][0]:.0e} in {dtype}: {comparison}."
            f"{again} bridge.explain(model, inputs) shows where the difference begins; verify=False accepts it."
        )

    def follows_order(self, traced: TracedModel, inputs: Inputs) -> bool:
        """Whether torch's results depend on which of equal elements comes first."""
        wanted, cotangents = self._torch(self.model, inputs, traced.params)
        with ReversedTies():
            other, _ = self._torch(self.model, inputs, traced.params, cotangents)
        dtype = compute_dtype(self.model, inputs, self.dtypes)
        return not _compare(other, wanted, dtype).within(dtype)

    def _torch(self, model: torch.nn.Module, *args: Any) -> tuple[Results, list[torch.Tensor]]:
        """Torch's results, each from the same state: what a forward keeps must not reach the next one."""
        snapshot = self.snapshot if model is self.model else Snapshot(model)
        return snapshot.around(lambda: torch_results(model, *args))

    def _is_rounded(
        self,
        got: Results,
        wanted: Results,
        exact: Results,
        comparison: Comparison,
        dtype: torch.dtype,
        draws: Iterable[Results],
    ) -> bool:
        """Whether results are off by what rounding in `dtype` does to torch's own, here `wanted` and the draws."""
        if not comparison.outputs <= _TOLERANCE[dtype][0]:
            return False
        ours, apart, noise = _compare(got, exact, dtype), _differences(got, exact), []
        near, parts = comparison.gradients <= _TOLERANCE[dtype][1], comparison.parts_within(dtype)
        for rounded in itertools.chain([wanted], draws):
            near = near or _is_rounding(comparison, dtype, ours, _compare(rounded, exact, dtype))
            noise.append(_differences(rounded, exact))
            parts = parts or _explained(apart, noise, dtype)
            if near and parts:
                return True
        return False

    def _in_double(self, double: torch.nn.Module, inputs: Inputs, exact: Results, cotangents: Any) -> Any:
        """The comparison in float64, and the coarsest dtype that is left in it: a model may cast to float32 itself."""
        dtypes: frozenset[torch.dtype] = frozenset()
        with contextlib.suppress(Exception):  # a second look at what has run before
            dtypes = record(copy.deepcopy(double), cloned(inputs)).dtypes
        coarsest = compute_dtype(double, inputs, dtypes)
        snapshot = Snapshot(double)
        with jax.enable_x64(True):
            traced = snapshot.around(lambda: self.trace(double, cloned(inputs)))
            return _compare(traced_results(traced, inputs, cotangents), exact, coarsest, finest=True), coarsest


def verify(
    traced: TracedModel,
    model: torch.nn.Module,
    inputs: Inputs,
    trace: Callable[[torch.nn.Module, Inputs], TracedModel],
) -> None:
    """Raise `MismatchError` where the traced model is not the torch model; `trace` traces copies in float64."""
    Judge(model, trace, Snapshot(model)).verify(traced, inputs)


def compute_dtype(model: torch.nn.Module, inputs: Inputs, dtypes: frozenset[torch.dtype] = frozenset()) -> torch.dtype:
    """The coarsest floating dtype among parameters, inputs and `dtypes`, which limits what one can ask for."""
    tensors = [*model.parameters(), *(x for x in torch_pytree.tree_leaves(inputs) if isinstance(x, torch.Tensor))]
    found = {tensor.dtype for tensor in tensors} | dtypes
    return next((dtype for dtype in reversed(_FLOATS) if dtype in found), torch.float32)


def _rounded(
    model: torch.nn.Module, inputs: Inputs, names: Container[str], cotangents: list[torch.Tensor]
) -> Iterator[Results]:
    """Torch's results for weights moved by a few roundings: which kinks fall to the other side is chance."""
    moved, generator = _copied(model), torch.Generator().manual_seed(0)
    for _ in range(_DRAWS):
        with torch.no_grad():
            for p, weight in zip(moved.parameters(), model.parameters(), strict=True):
                if p.is_floating_point():
                    noise = torch.randn(p.shape, generator=generator).to(p)
                    p.copy_(weight * (1 + _ROUNDINGS * torch.finfo(p.dtype).eps * noise))
        snapshot = Snapshot(moved)
        yield snapshot.around(lambda: torch_results(moved, inputs, names, cotangents)[0])


def _is_rounding(comparison: Comparison, dtype: torch.dtype, ours: Comparison, torchs: Comparison) -> bool:
    """Whether gradients are off by what rounding in `dtype` does to torch's own; `ours`, `torchs` are to float64's."""
    agree = comparison.outputs <= _TOLERANCE[dtype][0]
    return agree and ours.gradients <= 2 * torchs.gradients <= 2 * _OWN_ROUNDING


def _compare(
    got: Results, wanted: Results, dtype: torch.dtype = torch.float32, *, finest: bool | None = None
) -> Comparison:
    """Compare by the tolerance of `dtype`; `finest` where no better precision is left to judge by (float64's is)."""
    finest = dtype is torch.float64 if finest is None else finest
    if len(got.outputs) != len(wanted.outputs):
        raise MismatchError(f"torch returns {len(wanted.outputs)} tensors, the traced model {len(got.outputs)}.")
    pairs = list(zip(got.outputs, wanted.outputs, strict=True))
    each = _NOTHING if finest else 1e-6  # an output that is nothing but rounding
    errors = [relative_error(a, b, floor=each * b.numel() ** 0.5) for a, b in pairs]
    _, least_output, least_gradient = _PARTS[dtype]
    least = _NOTHING * (1e-4 if dtype is torch.float64 else 1) if finest else _TINY
    output_parts = [worst_part(a, b, max(least_output * norm(_finite(b)), least)) for a, b in pairs if b.ndim > 1]
    norms = {name: _finite_norm(g) for name, g in wanted.gradients.items()}
    largest = max(norms.values(), default=0.0)
    # gradients that vanish are rounding
    vanishing = max([0.0, *(_VANISHING * max(norm(_finite(b)), b.numel() ** 0.5) for _, b in pairs)]) if finest else 0.0
    floor = max(least_gradient * largest, 1e-3 * vanishing, _TINY)
    largest = max(largest, vanishing)
    slopes = {
        name: relative_error(got.gradients[name], g, floor=1e-3 * largest) for name, g in wanted.gradients.items()
    }
    worst = max(slopes, key=lambda name: slopes[name], default="")
    gradient_parts = []
    for name, g in wanted.gradients.items():
        most = slopes[name] * max(norms[name], 1e-3 * largest) / floor  # no part is further off than the whole
        gradient_parts.append(most if most <= _PARTS[dtype][0] else worst_part(got.gradients[name], g, floor))
    return Comparison(
        max(errors, default=0.0),
        slopes.get(worst, 0.0),
        worst,
        max(output_parts, default=0.0),
        max(gradient_parts, default=0.0),
    )


def _differences(got: Results, wanted: Results) -> Parts:
    """Part by part, how far outputs and gradients are apart, and how large they should be."""
    found = [part for a, b in zip(got.outputs, wanted.outputs, strict=True) for part in part_errors(a, b)]
    return found + [part for name, g in wanted.gradients.items() for part in part_errors(got.gradients[name], g)]


def _explained(apart: Parts, noise: Sequence[Parts], dtype: torch.dtype) -> bool:
    """Whether every part is within tolerance, or no further off than torch's own results a few times over."""
    if any(len(parts) != len(apart) for parts in noise):
        return False
    tolerance = _PARTS[dtype][0]
    for i, (difference, size) in enumerate(apart):
        allowed = torch.stack([parts[i][0] for parts in noise]).amax(0) * _OF_ROUNDING
        if not bool((difference <= torch.maximum(allowed, tolerance * size)).all()):
            return False
    return True


def _finite_norm(x: torch.Tensor) -> float:
    whole = norm(x)
    return whole if math.isfinite(whole) else norm(_finite(x))


def _finite(x: torch.Tensor) -> torch.Tensor:
    return x.nan_to_num(0.0, 0.0, 0.0) if x.is_floating_point() else x.to(torch.float64)


def _copied(model: torch.nn.Module) -> torch.nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:  # whatever a model's own attributes raise
        raise MismatchError(
            f"The traced model differs from torch, and the model cannot be copied to look again in float64: {error}. "
            "Let copy.deepcopy(model) work, or trace the model in float64."
        ) from error


def _double(inputs: Inputs) -> Inputs:
    def double(x: Any) -> Any:
        return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x

    return torch_pytree.tree_map(double, inputs)
