"""The table from ATen operators to the JAX functions that lower them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

Layout = Literal["torch", "elementwise", "own"]
F = TypeVar("F", bound=Callable[..., Any])


class ChannelsLast:
    """A value that torch sees as `(N, C, *spatial)` and that is stored as `(N, *spatial, C)`.

    Convolutions, pooling and normalisation run on it without transposing; every other lowering gets and gives
    arrays in torch's order of axes, and the interpreter converts at the edge.
    """

    def __init__(self, array: Array) -> None:
        self._array = array

    @property
    def array(self) -> Array:
        """The array as it is stored."""
        return self._array

    @property
    def logical(self) -> Array:
        """The array in torch's order of axes."""
        return jnp.moveaxis(self.array, -1, 1)

    def astype(self, dtype: Any) -> ChannelsLast:
        """The same in another dtype."""
        return self if self.array.dtype == dtype else ChannelsLast(self.array.astype(dtype))


class Convolved(ChannelsLast):
    """What a convolution gives, computed when it is first read.

    A normalisation with fixed statistics that follows rescales the kernel instead of the result. Forward that costs
    nothing less, but the gradient of its scale then comes from the kernel's: otherwise it is a sum over every pixel of
    a product, which XLA's CPU backend computes at 3 to 13 ns an element (ResNet-50: a seventh of its gradient).
    """

    def __init__(self, convolve: Callable[[Array], Array], weight: Array, bias: Array | None, dtype: Any) -> None:
        self._convolve, self._weight, self._bias, self._dtype = convolve, weight, bias, dtype
        self._result: Array | None = None

    @property
    def array(self) -> Array:
        """The result as it is stored."""
        if self._result is None:
            out = self._convolve(self._weight)
            self._result = out if self._bias is None else out + spread(self._bias, out.shape)
        return self._result

    def astype(self, dtype: Any) -> ChannelsLast:
        """The same in another dtype; not computed where it has that one."""
        return self if self.can_scale and self._dtype == dtype else super().astype(dtype)

    @property
    def can_scale(self) -> bool:
        """Whether to rescale the kernel: half precision would round worse, and a result once read is there to use."""
        return self._result is None and self._weight.dtype == self._dtype and self._dtype in (jnp.float32, jnp.float64)

    def scaled(self, scale: Array, shift: Array) -> Convolved:
        """The convolution whose outputs are `scale` times these plus `shift`, a number each per channel."""
        weight = self._weight * scale.reshape(-1, *(1,) * (self._weight.ndim - 1))
        bias = shift if self._bias is None else self._bias * scale + shift
        return Convolved(self._convolve, weight, bias, self._dtype)


@dataclasses.dataclass(frozen=True)
class Lowering:
    """A JAX function for one operator, and the layout of values it works on.

    Attributes:
        function: The lowering.
        layout: Of the values that it is given.
        fixed: What takes its place where no covered parameter is behind or beside it, so that it is only run forward.
    """

    function: Callable[..., Any]
    layout: Layout
    fixed: Callable[..., Any] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function, with every array in the layout that it works on."""
        if self.layout == "own":
            return self.function(*args, **kwargs)
        values = [value for value in [*args, *kwargs.values()] if isinstance(value, ChannelsLast)]
        if self.layout == "torch" or not values:
            return self.function(*map(logical, args), **{name: logical(value) for name, value in kwargs.items()})
        shape = values[0].array.shape
        if any(_rank(value) > len(shape) for value in [*args, *kwargs.values()]):
            return self.function(*map(logical, args), **{name: logical(value) for name, value in kwargs.items()})
        kwargs = {name: _last(value, shape) for name, value in kwargs.items()}
        return ChannelsLast(self.function(*(_last(value, shape) for value in args), **kwargs))


LOWERINGS: dict[Any, Lowering] = {}


def lowers(*operators: Any, layout: Layout = "torch", fixed: Callable[..., Any] | None = None) -> Callable[[F], F]:
    """Register the decorated JAX function as the lowering of one or more torch operators.

    The function takes the operator's own arguments, tensors as arrays and dtypes as numpy dtypes; `device`,
    `memory_format` and the like are dropped. A decorated function may be traced, batched and differentiated.

    Args:
        operators: overloads such as `torch.ops.aten.relu.default` or `torch.ops.mylib.myop.default`.
        layout: `"torch"` for arrays in torch's order of axes (the default), `"elementwise"` for functions that
            do not care about the order of axes, `"own"` to be given `ChannelsLast` values as they are.
        fixed: another function for where it is only run forward, since no covered parameter is behind it.
    """
    for operator in operators:
        if not hasattr(operator, "_schema"):
            raise TypeError(f"@lowers takes operator overloads such as torch.ops.aten.relu.default, got {operator!r}.")

    def register(function: F) -> F:
        for operator in operators:
            LOWERINGS[operator] = Lowering(function, layout, fixed)
        return function

    return register


def spread(channels: Array, shape: Sequence[int]) -> Array:
    """One number per channel, repeated over an array of `shape` whose last axis holds the channels.

    As broadcasting would, but by way of two axes, rows of many channels side by side: its transpose is then a sum of
    long rows, not fused into what it sums. XLA's CPU backend takes 0.3 to 0.6 ns an element for that, and 1 to 13 ns
    for the sum over all axes but the last.
    """
    if len(shape) < 3:
        return jnp.broadcast_to(channels, shape)
    row = jnp.broadcast_to(channels, (shape[-2], shape[-1])).reshape(-1)
    return jnp.broadcast_to(row, (math.prod(shape[:-2]), row.size)).reshape(shape)


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


def _last(value: Any, shape: tuple[int, ...]) -> Any:
    """An operand of an elementwise function beside a channels-last operand of `shape`."""
    if isinstance(value, ChannelsLast):
        return value.array
    if _rank(value) == 0:
        return value
    value = jnp.moveaxis(value.reshape((1,) * (len(shape) - value.ndim) + value.shape), 1, -1)
    return spread(value.reshape(-1), shape) if value.size == shape[-1] == value.shape[-1] else value
