"""For which batch sizes a captured graph holds: the conditions on it that the model's code looked at."""

from __future__ import annotations

import dataclasses
import functools
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.utils._sympy.printers import PythonPrinter

from bridge.tracing.errors import BatchSizeError
from bridge.tracing.source import is_users, shown

_STORAGE = ("contiguous", "stride", "overlapping", "channels_last")  # in names of torch's functions
_MODULE = str(Path("torch", "nn", "modules", "module.py"))


@dataclasses.dataclass(frozen=True)
class Guard:
    """A condition on the batch size that held while the model was traced."""

    expression: Any
    """A sympy expression in the symbols of :class:`BatchSizes`."""
    text: str
    where: str

    @property
    def numbers(self) -> list[int]:
        """The whole numbers in it."""
        return [int(atom) for atom in self.expression.atoms() if atom.is_Integer]

    def holds(self, sizes: Mapping[Any, int]) -> bool:
        """Whether it holds for the given sizes; one that they do not decide does."""
        try:
            return self.expression.xreplace(sizes) != False  # noqa: E712  (sympy's own)
        except ZeroDivisionError:
            return False


@dataclasses.dataclass(frozen=True)
class BatchSizes:
    """The batch sizes for which the traced function is the model."""

    axes: tuple[Any, ...] = ()
    """For each input with a batch axis, the symbol of its length."""
    guards: tuple[Guard, ...] = ()
    refused: tuple[tuple[int, str], ...] = ()
    """Single sizes that are not carried, with the reason."""
    carried: tuple[int, ...] = ()
    """Single sizes that are carried, whatever the conditions say."""
    others: tuple[BatchSizes, ...] = ()
    """Those of other paths through the model's code, which take what the conditions leave out."""

    def refusal(self, *sizes: int) -> str | None:
        """Why a batch of this size is not carried, or None where it is; one size, or one for each batched input."""
        return _refusal(self, sizes)

    def check(self, sizes: Sequence[int]) -> None:
        """Raise `BatchSizeError` where a batch is not carried."""
        reason = _refusal(self, tuple(sizes)) if sizes else None
        if reason is not None:
            raise BatchSizeError(reason)


@functools.lru_cache(maxsize=4096)
def _refusal(batch: BatchSizes, sizes: Sequence[int]) -> str | None:
    lengths: dict[Any, int] = {}
    each = [*sizes] * (len(batch.axes) if len(sizes) == 1 else 1)
    given = list(zip(batch.axes, each, strict=True)) if batch.axes else []
    for axis, size in sorted(given, key=lambda pair: not pair[0].is_symbol):  # others are written in terms of symbols
        wanted = lengths.setdefault(axis, size) if axis.is_symbol else axis.xreplace(lengths)
        if wanted != size:
            return f"The inputs have batches of {', '.join(map(str, sizes))}, but were traced with one batch axis."
    for size in sizes:
        if size in batch.carried:
            return None
        reason = dict(batch.refused).get(size)
        if reason is not None:
            return reason
    again = "Trace the model again with an example of such a size."
    path = f"A batch of {sizes[0]} takes another path through the model's code than the traced one, which is for sizes"
    for guard in batch.guards:
        if not guard.holds(lengths):
            if any(other.refusal(*sizes) is None for other in batch.others):
                return None
            return f"{path} n with {guard.text}{guard.where}. {again}"
    return None


def batch_sizes(program: ExportedProgram, names: Sequence[str]) -> tuple[list[bool], BatchSizes]:
    """Which inputs kept a symbolic axis 0, and the sizes that the graph holds for."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    flags, axes = [], []
    environment: Any = None
    for name in names:
        value = nodes[name].meta.get("val")
        size = value.shape[0] if isinstance(value, torch.Tensor) and value.ndim else None
        flags.append(isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None)
        if isinstance(size, torch.SymInt) and flags[-1]:
            environment = size.node.shape_env
            axes.append(size.node.expr)
    return flags, BatchSizes(tuple(axes), _guards(environment, axes))


def _guards(environment: Any, axes: Sequence[Any]) -> tuple[Guard, ...]:
    """The guards of export's symbols; `range_constraints` tells those alone that are a range.

    Without those by which torch finds out how a tensor lies in memory, which arrays do not do.
    """
    found: dict[Any, Guard] = {}
    of_memory: set[Any] = set()
    for guard in getattr(environment, "guards", ()):
        expression = environment.replace(guard.expr)
        if any(word in getattr(_frame(guard), "name", "") for word in _STORAGE):
            of_memory.add(expression)
            continue
        if expression in of_memory and _is_repeated(guard):
            continue
        if expression.free_symbols and expression.free_symbols <= {s for axis in axes for s in axis.free_symbols}:
            text = shown(guard_line(guard)).removeprefix(", ")
            found.setdefault(expression, Guard(expression, _text(expression), f" ({text})" if text else ""))
    return tuple(found.values())


def _text(expression: Any) -> str:
    """A condition as one would write it in Python, on `n` or on `n1`, `n2` and so on."""
    symbols = sorted(expression.free_symbols, key=str)
    names = {symbol: f"n{i + 1}" if len(symbols) > 1 else "n" for i, symbol in enumerate(symbols)}
    return PythonPrinter().doprint(expression.xreplace({old: type(old)(new) for old, new in names.items()}))


def guard_line(guard: Any) -> tuple[str, int] | None:
    """The line of the user's code that asked for a condition."""
    frame = _frame(guard)
    if not isinstance(frame, traceback.FrameSummary) or not is_users(frame.filename):
        return None
    return frame.filename, frame.lineno or 0


def _is_repeated(guard: Any) -> bool:
    """Whether it was asserted by an exported program as a whole, which repeats all its guards, and by no function."""
    return getattr(_frame(guard), "filename", "").endswith(_MODULE)


def _frame(guard: Any) -> Any:
    return getattr(getattr(guard, "sloc", None), "framework_loc", None)
