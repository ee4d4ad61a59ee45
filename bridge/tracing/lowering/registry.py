"""The table from ATen operators to the JAX functions that lower them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

Layout = Literal["torch", "elementwise", "own"]
F = TypeVar("F", bound=Callable[..., Any])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ChannelsLast:
    """A value that torch sees as `(N, C, *spatial)` and that is stored as `(N, *spatial, C)`.

    Convolutions, pooling and normalisation run on it without transposing; every other lowering gets and gives
    arrays in torch's order, and the interpreter converts at the edge.
    """

    array: Array

    @property
    def logical(self) -> Array:
        """The array in torch's order of axes."""
        return jnp.moveaxis(self.array, -1, 1)


@dataclasses.dataclass(frozen=True)
class Lowering:
    """A JAX function for one operator, and the layout of values it works on."""

    function: Callable[..., Any]
    layout: Layout

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function, with every array in the layout that it works on."""
        if self.layout == "own":
            return self.function(*args, **kwargs)
        values = [value for value in [*args, *kwargs.values()] if isinstance(value, ChannelsLast)]
        if self.layout == "torch" or not values:
            return self.function(*map(logical, args), **{name: logical(value) for name, value in kwargs.items()})
        ndim = values[0].array.ndim
        if any(_rank(value) > ndim for value in [*args, *kwargs.values()]):
            return self.function(*map(logical, args), **{name: logical(value) for name, value in kwargs.items()})
        kwargs = {name: _last(value, ndim) for name, value in kwargs.items()}
        return ChannelsLast(self.function(*(_last(value, ndim) for value in args), **kwargs))


LOWERINGS: dict[Any, Lowering] = {}


def lowers(*operators: Any, layout: Layout = "torch") -> Callable[[F], F]:
    """Register the decorated JAX function as the lowering of one or more torch operators.

    The function takes the operator's own arguments, tensors as arrays and dtypes as numpy dtypes; `device`,
    `memory_format` and the like are dropped. A decorated function may be traced, batched and differentiated.

    Args:
        operators: overloads such as `torch.ops.aten.relu.default` or `torch.ops.mylib.myop.default`.
        layout: `"torch"` for arrays in torch's order of axes (the default), `"elementwise"` for functions that
            do not care about the order of axes, `"own"` to be given `ChannelsLast` values as they are.
    """
    for operator in operators:
        if not hasattr(operator, "_schema"):
            raise TypeError(f"@lowers takes operator overloads such as torch.ops.aten.relu.default, got {operator!r}.")

    def register(function: F) -> F:
        for operator in operators:
            LOWERINGS[operator] = Lowering(function, layout)
        return function

    return register


def logical(value: Any) -> Any:
    """`value` with every array in torch's order of axes."""
    if isinstance(value, ChannelsLast):
        return value.logical
    if isinstance(value, (list, tuple)):
        return type(value)(map(logical, value))
    return value


def channels_last(value: ChannelsLast | Array) -> Array:
    """The channels-last array of `value`, given in either layout."""
    return value.array if isinstance(value, ChannelsLast) else jnp.moveaxis(value, 1, -1)


def _rank(value: Any) -> int:
    return value.ndim if isinstance(value, jax.Array) else 0


def _last(value: Any, ndim: int) -> Any:
    """An operand of an elementwise function beside channels-last operands of `ndim` axes."""
    if isinstance(value, ChannelsLast):
        return value.array
    if _rank(value) == 0:
        return value
    return jnp.moveaxis(value.reshape((1,) * (ndim - value.ndim) + value.shape), 1, -1)
