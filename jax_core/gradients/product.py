"""Products of a network's parameters with vectors, and how they are read off the equations of a traced function."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives
from jaxtyping import Array, Float, Int

from jax_core.xla.interpret import value_of

Results: TypeAlias = Array | list[Any]
"""Of a product: its value, or all that a loop gives."""

Groups = tuple[tuple[int, ...], ...]


class Use(NamedTuple):
    """The label of a parameter leaf on its way: the axes of the leaf that each axis of the value holds."""

    leaf: int
    groups: Groups
    scale: Array | None = None
    """By which the leaf was multiplied: in its own axes, of length one where it does not vary."""


class Offset(NamedTuple):
    """The label of a leaf that is only spread: what a layer adds to its product."""

    leaf: int


class Result(NamedTuple):
    """The label of a product's result."""

    leaf: int


@dataclass(frozen=True)
class Product:
    """A product of a parameter leaf, stored as ``(*out, *in)`` or in another order, with vectors.

    Attributes:
        leaf: Its number.
        out_axes: Its axes that the product keeps.
        in_axes: Its axes that are summed over.
        vectors: Makes the vectors ``(S, I)`` of an example that the matrix meets; of a table, whose vectors are zero
            but for a one, the rows ``(S,)`` that they pick, ``I`` for none.
        add: From a zero ``(S, O)``, in the order of the vectors and of ``out_axes``, to the result with it added.
        result: The product.
        scale: By which the matrix's outputs were multiplied before: a gradient of the leaf is that of the matrix times
            this.
        is_table: Whether rows of the leaf are looked up: it is stored as ``(in, out)``.
    """

    leaf: int
    out_axes: tuple[int, ...]
    in_axes: tuple[int, ...]
    vectors: Callable[[], Float[Array, "S I"] | Int[Array, " S"]]
    add: Callable[[Array], Results]
    result: Results
    scale: Float[Array, " O"] | None = None
    is_table: bool = False

    @property
    def axes(self) -> tuple[int, ...]:
        """Those that the product keeps, then those that are summed over."""
        return (*self.out_axes, *self.in_axes)


def product_of(equation: Any, operands: list[Any], side: int, evaluate: Callable[[], list[Any]]) -> Product | None:
    """The product that an equation is, whose operand ``side`` carries a label :class:`Use`, if it is one.

    Those with batch axes or groups are none, nor is what varies along the inputs after a scale.
    """
    label = operands[side].label
    if equation.primitive is primitives.dot_general_p:
        product = _dot(equation, operands, side, label, evaluate)
    elif equation.primitive is primitives.conv_general_dilated_p and side == 1:
        product = _convolution(equation, operands, label, evaluate)
    elif equation.primitive is primitives.gather_p and side == 0:
        return _table(equation, operands, label, evaluate)
    else:
        return None
    return None if product is None or not _scaled_outside(product, label.scale) else product


def _scaled_outside(product: Product, scale: Array | None) -> bool:
    """Whether a scale varies along outputs alone, so that it stands outside of the product."""
    return scale is None or all(scale.shape[axis] == 1 for axis in product.in_axes)


def _out_scale(label: Use, out_axes: tuple[int, ...], in_axes: tuple[int, ...], sizes: dict[int, int]) -> Array | None:
    if label.scale is None or any(label.scale.shape[axis] != 1 for axis in in_axes):
        return None
    moved = jnp.transpose(label.scale, (*out_axes, *in_axes))
    return jnp.broadcast_to(moved.reshape(moved.shape[: len(out_axes)]), [sizes[a] for a in out_axes]).reshape(-1)


def _axis_sizes(label: Use, shape: Sequence[int]) -> dict[int, int]:
    """The length of each axis of a leaf, as far as one axis of the value holds one; a scale knows the others."""
    found = {group[0]: size for group, size in zip(label.groups, shape, strict=True) if len(group) == 1}
    if label.scale is not None:
        found |= {axis: size for axis, size in enumerate(label.scale.shape) if size != 1 or axis not in found}
    return found


def _dot(
    equation: Any, operands: list[Any], side: int, label: Use, evaluate: Callable[[], list[Any]]
) -> Product | None:
    contracted, batched = equation.params["dimension_numbers"]
    if batched[side]:
        return None
    groups, over, met = label.groups, contracted[1 - side], value_of(operands[1 - side])
    rest = [i for i in range(len(groups)) if i not in contracted[side]]
    out_axes, in_axes = (tuple(a for i in some for a in groups[i]) for some in (rest, contracted[side]))
    width = math.prod(met.shape[axis] for axis in over)
    result = evaluate()[0]

    def add(probe: Array) -> Array:
        return result + (probe.T if side == 0 else probe).reshape(result.shape)

    return Product(
        label.leaf,
        out_axes,
        in_axes,
        lambda: jnp.moveaxis(met, over, range(-len(over), 0)).reshape(-1, width),
        add,
        result,
        _out_scale(label, out_axes, in_axes, _axis_sizes(label, operands[side].value.shape)),
    )


def _convolution(equation: Any, operands: list[Any], label: Use, evaluate: Callable[[], list[Any]]) -> Product | None:
    options = equation.params
    numbers = options["dimension_numbers"]
    dilated = any(step != 1 for step in options["lhs_dilation"])
    if options["feature_group_count"] != 1 or options["batch_group_count"] != 1 or dilated:
        return None
    images, kernel, result = value_of(operands[0]), operands[1].value, evaluate()[0]
    groups = [label.groups[axis] for axis in numbers.rhs_spec]  # (out, in, *window)
    out_axes, in_axes = groups[0], tuple(axis for group in groups[1:] for axis in group)
    window = [kernel.shape[axis] for axis in numbers.rhs_spec[2:]]
    back = [numbers.out_spec.index(axis) for axis in range(result.ndim)]  # from (N, O, *map)

    def vectors() -> Array:
        moved = jnp.transpose(images, numbers.lhs_spec)  # (N, C, *map)
        patches = lax.conv_general_dilated_patches(
            moved, window, options["window_strides"], options["padding"], rhs_dilation=options["rhs_dilation"]
        )  # (N, C * window, *map)
        return jnp.moveaxis(patches, 1, -1).reshape(-1, patches.shape[1])

    def add(probe: Array) -> Array:
        shape = [result.shape[axis] for axis in numbers.out_spec]  # (N, O, *map)
        moved = jnp.moveaxis(probe.reshape(shape[0], *shape[2:], shape[1]), -1, 1)
        return result + jnp.transpose(moved, back)

    scale = _out_scale(label, out_axes, in_axes, _axis_sizes(label, kernel.shape))
    return Product(label.leaf, out_axes, in_axes, vectors, add, result, scale)


def _table(equation: Any, operands: list[Any], label: Use, evaluate: Callable[[], list[Any]]) -> Product | None:
    """Whole rows of a leaf as it is stored, found by their numbers: a product with vectors of zeros and a one."""
    options, table = equation.params, operands[0].value
    numbers, indices = options["dimension_numbers"], value_of(operands[1])
    by_row = numbers.start_index_map == numbers.collapsed_slice_dims == (0,) and not numbers.operand_batching_dims
    last = numbers.offset_dims == (jnp.ndim(indices) - 1,)
    whole = table.ndim == 2 and tuple(options["slice_sizes"]) == (1, table.shape[1])
    if label.groups != ((0,), (1,)) or label.scale is not None or not (by_row and last and whole):
        return None
    result, count, mode = evaluate()[0], table.shape[0], options["mode"]
    rows = jnp.asarray(indices).reshape(-1)
    if mode == lax.GatherScatterMode.CLIP:
        rows = jnp.clip(rows, 0, count - 1)
    inside = (rows >= 0) & (rows < count)  # else there is nothing of the table in the result

    def add(probe: Array) -> Array:
        return result + probe.reshape(result.shape)

    return Product(label.leaf, (1,), (0,), lambda: jnp.where(inside, rows, count), add, result, None, True)
