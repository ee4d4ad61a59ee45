"""Names for the shapes of things that cross module borders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax

Params: TypeAlias = Any
"""A pytree of floating-point arrays."""

ModelFn: TypeAlias = Callable[..., jax.Array]
"""``model_fn(input, params) -> output`` for ONE example, without a batch axis."""

Data: TypeAlias = Any
"""``{"input": ..., "target": ...}`` or ``(input, target)``; the leading axis of every leaf is the batch."""

MatVec: TypeAlias = Callable[[Any], Any]
"""``v -> A v`` on a pytree or on a flat vector."""
