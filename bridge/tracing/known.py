"""Functions known by what they compute: of two traces of one architecture, the programs of the first serve the other.

Compiled programs are remembered by the function that they were made from. A search that fits a new network at each step
traces a new function each time, of the same graph.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from bridge.tracing.inputs import Constant, InputSpec, Signature
from bridge.tracing.interpreter import Step
from bridge.tracing.lowering import Lowering


class Known:
    """A pure function, equal to any other of the same description."""

    def __init__(self, function: Callable[..., Any], description: str | None) -> None:
        """Without a description it is equal to itself alone."""
        self._function, self.description = function, description

    def __call__(self, *args: Any) -> Any:
        """Call the function."""
        return self._function(*args)

    def __eq__(self, other: object) -> bool:
        """Whether it computes the same."""
        same = isinstance(other, Known) and self.description is not None and self.description == other.description
        return same or self is other

    def __hash__(self) -> int:
        """That of the description."""
        return object.__hash__(self) if self.description is None else hash(self.description)


def described(*parts: Any) -> str | None:
    """A hash of what a function is made of, known functions among it; ``None`` where a part cannot be told.

    Lowerings and classes go by their identity, which holds as long as the function does that uses them.
    """
    try:
        return hashlib.sha256(repr(tuple(map(_told, parts))).encode()).hexdigest()
    except _UntoldError:
        return None


class _UntoldError(Exception):
    """A part whose type is not among those that are told."""


_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.layout)


def _told(value: Any) -> Any:
    if type(value) in (*_PLAIN, torch.memory_format):
        return type(value).__name__, repr(value)
    match value:
        case Known():
            if value.description is None:
                raise _UntoldError
            return "known", value.description
        case fx.Node():
            return "node", value.name
        case Step():
            run, given = value.run, (value.args, value.kwargs, value.dtypes, value.operands)
            how = (run.function, run.layout) if isinstance(run, Lowering) else (run, None)
            return value.name, value.operator, id(how[0]), how[1], _told(given)
        case Signature():
            return _told((value.keywords, value.leaves)), _structure(value.structure), repr(value.batch)
        case InputSpec():
            return repr(value)
        case Constant():
            return "constant", _told(value.value)
        case Mapping():
            return id(type(value)), [(_told(key), _told(entry)) for key, entry in value.items()]
        case Sequence() | set() | frozenset():
            return id(type(value)), [_told(entry) for entry in value]
    raise _UntoldError


def _structure(spec: Any) -> Any:
    return id(spec.type), repr(spec.context), [_structure(child) for child in spec.children()]
