"""A curvature as named arrays and a few words, for a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from jax_core.operators import (
    BlockDiagonal,
    BlockLowRank,
    Dense,
    Diagonal,
    Kronecker,
    LowRank,
    Operator,
    RowBlocks,
    Symmetric,
)

_KINDS: dict[str, Any] = {kind.__name__: kind for kind in (LowRank, Dense, Symmetric, Diagonal, Kronecker, RowBlocks)}
_ACROSS = "ColumnBlocks"  # row blocks that lie across
_KINDS[_ACROSS] = partial(RowBlocks, across=True)


def kinds_of(operator: Operator) -> list[str]:
    """The operator's kind, and those of its blocks after it."""
    if isinstance(operator, BlockLowRank | BlockDiagonal):
        return [type(operator).__name__, *map(_kind, operator.parts)]
    return [_kind(operator)]


def _kind(operator: Operator) -> str:
    return _ACROSS if isinstance(operator, RowBlocks) and operator.across else type(operator).__name__


def arrays_of(operator: Operator) -> dict[str, Any]:
    """All arrays by names, those of block ``i`` as ``i.name``."""
    if isinstance(operator, BlockLowRank):
        return {**arrays_of(operator.blocks), "U": operator.U, "s": operator.s}
    if isinstance(operator, BlockDiagonal):
        return {f"{i}.{name}": a for i, part in enumerate(operator.parts) for name, a in _fields(part).items()}
    return _fields(operator)


def _fields(operator: Any) -> dict[str, Any]:
    kept = [field for field in dataclasses.fields(operator) if field.compare and not field.metadata.get("static")]
    found = {field.name: getattr(operator, field.name) for field in kept}
    return {name: array for name, array in found.items() if array is not None}


def _made(kind: str, arrays: Mapping[str, Any]) -> Any:
    sides = {"left": None, "right": None} if kind == Kronecker.__name__ else {}  # the identity is not written
    return _KINDS[kind](**sides | dict(arrays))


def operator_of(kinds: Sequence[str], arrays: Mapping[str, Any]) -> Operator:
    """The operator of such a record.

    Raises:
        ValueError: If the record is of no operator.
    """
    try:
        whole, *blocks = kinds
        if whole not in ("BlockLowRank", "BlockDiagonal"):
            return _made(whole, arrays)
        parts = tuple(_made(kind, _under(f"{i}.", arrays)) for i, kind in enumerate(blocks))
        base = BlockDiagonal(parts)
        return base if whole == "BlockDiagonal" else BlockLowRank(base, arrays["U"], arrays["s"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"The curvature in this file is none that is known: {', '.join(map(str, kinds))}.") from error


def _under(prefix: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
