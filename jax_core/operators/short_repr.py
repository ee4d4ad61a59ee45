"""Values that print on one line: arrays by their shapes."""

from __future__ import annotations

from dataclasses import dataclass, fields

import jax
from jax.core import Tracer


@dataclass(frozen=True, repr=False)
class ShortRepr:
    """For dataclasses with ``repr=False``: arrays appear as ``float32[664,100]``, single numbers as they are."""

    def __repr__(self) -> str:
        """The class with its fields."""
        shown = ", ".join(f"{field.name}={_short(getattr(self, field.name))}" for field in fields(self) if field.repr)
        return f"{type(self).__name__}({shown})"


def _short(value: object) -> str:
    if not isinstance(value, jax.Array):
        return repr(value)
    known = value.ndim == 0 and not isinstance(value, Tracer)
    return f"{value.item():.6g}" if known else jax.typeof(value).str_short()
