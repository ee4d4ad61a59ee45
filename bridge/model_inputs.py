"""Inputs given by name beside the first."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

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
    first = dict(x) if isinstance(x, Mapping) else {known[0]: x}
    return {**first, **named}
