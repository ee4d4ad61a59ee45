"""Names for the shapes of things that cross module borders."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import jax
import numpy as np

T = TypeVar("T")

ArrayLike: TypeAlias = jax.Array | np.ndarray
"""An array of either library."""

Params: TypeAlias = Any
"""A pytree of floating-point arrays."""

ModelFn: TypeAlias = Callable[..., jax.Array]
"""``model_fn(input, params) -> output`` for ONE example, without a batch axis."""

Data: TypeAlias = Any
"""``{"input": ..., "target": ...}`` or ``(input, target)``; the leading axis of every leaf is the batch."""

MatVec: TypeAlias = Callable[[Any], Any]
"""``v -> A v`` on a pytree or on a flat vector."""


def pytree(cls: type[T]) -> type[T]:
    """Register a frozen dataclass as a pytree, of a structure that no other class has.

    Fields are children; with ``metadata={"static": True}`` they belong to the structure, and have to be hashable; with
    ``{"dropped": True}`` they are left out, and made anew by their default factory. Nothing is checked or converted
    where a value is put together again, since children may then be tracers, shapes or place-holders.

    ``jax.tree_util.register_dataclass`` would do, but with jaxlib 0.10.1 two classes of as many fields have structures
    that compare equal and only differ in their hash: now and then a compiled function then runs the program that it
    has for values of the other class.
    """
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    dropped = [field for field in fields if field.metadata.get("dropped")]
    static = [field.name for field in fields if field.metadata.get("static")]
    children = [field.name for field in fields if field not in dropped and field.name not in static]
    keys = [jax.tree_util.GetAttrKey(name) for name in children]

    def flatten(value: T) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return tuple(getattr(value, name) for name in children), tuple(getattr(value, name) for name in static)

    def flatten_with_keys(value: T) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        held, structure = flatten(value)
        return tuple(zip(keys, held, strict=True)), structure

    def unflatten(structure: tuple[Any, ...], held: Any) -> T:
        value = object.__new__(cls)
        for name, part in zip((*children, *static), (*held, *structure), strict=True):
            object.__setattr__(value, name, part)
        for field in dropped:
            assert callable(field.default_factory)
            object.__setattr__(value, field.name, field.default_factory())
        return value

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls
