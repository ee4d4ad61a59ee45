"""Where a network multiplies by its parameters: matrix products and convolutions, found in the traced function.

A leaf is followed through transpositions, reshapes that join axes, and a scale of its own rows (a batch normalisation
that is folded into the weights before it), as long as it is used once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives
from jaxtyping import Array, Float

from jax_core.types import ModelFn, Params
from jax_core.xla.interpret import Tracked, interpret, value_of

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
        vectors: Makes the vectors ``(S, I)`` of an example that the matrix meets.
        add: From a zero ``(S, O)``, in the order of the vectors and of ``out_axes``, to the result with it added.
        result: The product.
        scale: By which the matrix's outputs were multiplied before: a gradient of the leaf is that of the matrix times
            this.
    """

    leaf: int
    out_axes: tuple[int, ...]
    in_axes: tuple[int, ...]
    vectors: Callable[[], Float[Array, "S I"]]
    add: Callable[[Array], Array]
    result: Array
    scale: Float[Array, " O"] | None = None


OnProduct: TypeAlias = Callable[[Product], Array]
OnOffset: TypeAlias = Callable[[int, int], None]


def run_watched(
    model_fn: ModelFn,
    params: Params,
    x: Any,
    watched: set[int],
    on_product: OnProduct,
    on_offset: OnOffset | None = None,
) -> Any:
    """The model's output, with ``on_product`` in the place of each product that one of the leaves meets.

    Args:
        model_fn: For one example.
        params: Its parameters.
        x: The example.
        watched: Numbers of leaves.
        on_product: From a product to its result. Products with batch axes or groups are left alone.
        on_offset: Called with ``(leaf, matrix)`` where a vector is added to the result of a matrix.
    """
    closed = jax.make_jaxpr(model_fn)(x, params)
    known = [_labelled(i, leaf, watched, on_offset) for i, leaf in enumerate(jax.tree.leaves(params))]

    def visit(equation: Any, operands: list[Any], evaluate: Callable[[], list[Any]]) -> list[Any]:
        sides = [i for i, operand in enumerate(operands) if isinstance(operand, Tracked)]
        labels = [operands[i].label for i in sides]
        if on_offset is not None and equation.primitive is primitives.add_p and len(labels) == 2:
            _note_offset(labels, on_offset)
        if len(sides) != 1:
            return evaluate()
        if isinstance(labels[0], Offset):
            kept = equation.primitive in (primitives.broadcast_in_dim_p, primitives.reshape_p)
            return [Tracked(labels[0], evaluate()[0])] if kept else evaluate()
        if isinstance(labels[0], Use):
            return _follow(equation, operands, sides[0], evaluate, on_product)
        return evaluate()

    return value_of(interpret(closed.jaxpr, closed.consts, [*jax.tree.leaves(x), *known], visit)[0])


def _labelled(number: int, leaf: Any, watched: set[int], on_offset: OnOffset | None) -> Any:
    if number in watched:
        return Tracked(Use(number, tuple((axis,) for axis in range(jnp.ndim(leaf)))), leaf)
    return Tracked(Offset(number), leaf) if on_offset is not None and jnp.ndim(leaf) == 1 else leaf


def _note_offset(labels: list[Any], on_offset: OnOffset) -> None:
    for offset, result in (labels, labels[::-1]):
        if isinstance(offset, Offset) and isinstance(result, Result):
            on_offset(offset.leaf, result.leaf)


def _follow(
    equation: Any, operands: list[Any], side: int, evaluate: Callable[[], list[Any]], on_product: OnProduct
) -> list[Any]:
    """What becomes of an equation that a leaf enters."""
    label, value = operands[side]
    leaf, groups, scale = label
    if equation.primitive is primitives.transpose_p:
        moved = tuple(groups[axis] for axis in equation.params["permutation"])
        return [Tracked(Use(leaf, moved, scale), evaluate()[0])]
    if equation.primitive is primitives.reshape_p:
        results = evaluate()
        joined = _joined(groups, value.shape, results[0].shape)
        return results if joined is None else [Tracked(Use(leaf, joined, scale), results[0])]
    if equation.primitive is primitives.mul_p:
        results = evaluate()
        other = jnp.asarray(operands[1 - side])
        other = other.reshape((1,) * len(groups)) if other.ndim == 0 else other
        if any(len(group) != 1 for group in groups) or other.ndim != len(groups) or results[0].shape != value.shape:
            return results
        own = jnp.transpose(other, [axis for axis, _ in sorted(enumerate(groups), key=lambda item: item[1])])
        return [Tracked(Use(leaf, groups, own if scale is None else scale * own), results[0])]
    if equation.primitive is primitives.dot_general_p:
        product = _dot(equation, operands, side, label, evaluate)
    elif equation.primitive is primitives.conv_general_dilated_p and side == 1:
        product = _convolution(equation, operands, label, evaluate)
    else:
        return evaluate()
    if product is None:
        return evaluate()
    if not _scaled_outside(product, scale):
        return [product.result]
    return [Tracked(Result(leaf), on_product(product))]


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
    groups, over, met = label.groups, contracted[1 - side], operands[1 - side]
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
    images, kernel, result = operands[0], operands[1].value, evaluate()[0]
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


def _joined(groups: Groups, before: Sequence[int], after: Sequence[int]) -> Groups | None:
    """The groups after a reshape that joins neighbouring axes, or ``None`` after any other."""
    waiting, result = list(zip(before, groups, strict=True)), []
    for size in after:
        group: tuple[int, ...] = ()
        while waiting and (size > 1 or waiting[0][0] == 1) and size % waiting[0][0] == 0:
            extent, axes = waiting.pop(0)
            group, size = group + axes, size // extent
        if size != 1:
            return None
        result.append(group)
    return None if waiting else tuple(result)
