"""Inputs given by name beside the first."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from bridge.arguments import Parameters
from bridge.options import unknown_option
from bridge.tracing.checks import unwrap

_OPTIONS = ("pred_type", "joint", "link_approx", "n_samples", "diagonal_output", "generator")


def with_keywords(model: nn.Module, x: Any, named: dict[str, Any]) -> dict[str, Any]:
    """A batch of inputs with those given by name.

    Raises:
        TypeError: For a name that the model's ``forward`` does not take.
    """
    parameters = inspect.signature(unwrap(model).forward).parameters
    known = [name for name, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    takes_any = len(known) < len(parameters)
    for name in () if takes_any else named:
        if name not in known:
            raise unknown_option("A prediction", name, [*_OPTIONS, *known])
    placed = list(x) if isinstance(x, tuple | list) else [x]
    if isinstance(x, Mapping):
        first = dict(x)
    elif len(placed) <= len(known) and not set(known[: len(placed)]) & set(named):
        first = dict(zip(known, placed, strict=False))
    else:
        raise TypeError(
            f"{type(unwrap(model)).__name__}.forward has no first input by name beside {', '.join(map(repr, named))}. "
            "Give all inputs in one mapping."
        )
    return {**first, **named}


def by_position(model: nn.Module, named: dict[str, Any], count: int) -> Any:
    """Inputs by name as the ``count`` first that ``forward`` takes by position, if they are just those."""
    places = Parameters.of(unwrap(model)).places[:count]
    return tuple(named[name] for name in places) if set(places) == set(named) else named
