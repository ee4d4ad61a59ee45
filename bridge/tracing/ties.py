"""Equal elements that a model puts in order: torch leaves open which of them comes first."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bridge.tracing.source import shown

aten = torch.ops.aten

_ORDERING = (aten.sort.default, aten.topk.default)


def orders_equals(operator: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a call puts equal elements in an order, or takes some of them."""
    if operator not in _ORDERING:
        return False
    given = _named(operator, args, kwargs)
    x, axis = given["self"].detach(), given.get("dim", -1)
    if x.ndim == 0 or x.shape[axis] < 2:
        return False
    ordered = x.sort(axis).values.movedim(axis, 0)
    return bool((ordered[1:] == ordered[:-1]).any())


def open_order(operator: Any, line: tuple[str, int] | None) -> str:
    """What such a call means for a traced model, and the remedy."""
    remedy = "Take the first of x.sort(stable=True)" if operator is aten.topk.default else "Pass stable=True"
    return (
        f"The model orders equal elements, by {operator}{shown(line)}, and torch leaves open which of them comes "
        f"first. {remedy}, or do without places."
    )


class ReversedTies(TorchDispatchMode):
    """While on, the last of equal elements comes first: what it changes, torch leaves open."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _ORDERING or _named(func, args, kwargs)["self"].ndim == 0:
            return func(*args, **kwargs)
        given = _named(func, args, kwargs)
        x, axis = given["self"], given.get("dim", -1)
        falling = given.get("largest", True) if func is aten.topk.default else given.get("descending", False)
        values, places = x.flip(axis).sort(dim=axis, descending=falling, stable=True)
        places = x.shape[axis] - 1 - places
        if func is aten.topk.default:
            values, places = (t.narrow(axis, 0, given["k"]).clone() for t in (values, places))
        return values, places


def _named(operator: Any, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    names = (argument.name for argument in operator._schema.arguments)
    return {**dict(zip(names, args, strict=False)), **kwargs}
