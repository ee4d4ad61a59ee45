"""Checks of options, where a user's mistake is cheapest."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias, get_args

LinkName: TypeAlias = Literal[
    "auto", "probit", "mc", "bridge", "bridge_norm", "mean_field_0", "mean_field_1", "mean_field_2"
]

PredictionType: TypeAlias = Literal["glm", "nn"]


def one_of(name: str, value: Any, choices: Any) -> None:
    """Refuse a value that is not among a ``Literal``'s.

    Raises:
        ValueError: Naming the option, the value and the choices.
    """
    if value not in get_args(choices):
        raise ValueError(f"{name}={value!r}. Choose one of {', '.join(map(repr, get_args(choices)))}.")


def positive(name: str, value: Any) -> None:
    """Refuse anything but a positive finite number.

    Raises:
        ValueError: Naming the option and the value.
    """
    if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
        raise ValueError(f"{name}={value!r}: give a positive number.")


def whole(name: str, value: Any) -> None:
    """Refuse anything but a whole number of at least one.

    Raises:
        ValueError: Naming the option and the value.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r}: give a whole number of at least one.")
