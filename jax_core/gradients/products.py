"""Where a network multiplies by its parameters: matrix products and convolutions, found in the traced function.

A leaf is followed through transpositions, reshapes that join axes, and a scale of its own rows (a batch normalisation
that is folded into the weights before it), to each of its uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.extend.core import primitives

from jax_core.gradients.loops import loop_product
from jax_core.gradients.product import Groups, Offset, Product, Result, Results, Use, product_of
from jax_core.types import ModelFn, Params
from jax_core.xla.interpret import Tracked, Visit, interpret, value_of

OnProduct: TypeAlias = Callable[[Product], Results]
OnOffset: TypeAlias = Callable[[int, int], None]
OnEscape: TypeAlias = Callable[[int], None]


def run_watched(
    model_fn: ModelFn,
    params: Params,
    x: Any,
    watched: set[int],
    on_product: OnProduct,
    on_offset: OnOffset | None = None,
    on_escape: OnEscape | None = None,
) -> Any:
    """The model's output, with ``on_product`` in the place of each product that one of the leaves meets.

    Args:
        model_fn: For one example.
        params: Its parameters.
        x: The example.
        watched: Numbers of leaves.
        on_product: From a product to its result, once for each use of a leaf, and for a loop whose steps share one.
            Products with batch axes or groups are left alone.
        on_offset: Called with ``(leaf, matrix)`` where a vector is added to the result of a matrix.
        on_escape: Called with a leaf wherever something else becomes of it.
    """
    closed = jax.make_jaxpr(model_fn)(x, params)
    known = [_labelled(i, leaf, watched, on_offset) for i, leaf in enumerate(jax.tree.leaves(params))]

    visit = _watching(on_product, on_offset, on_escape)
    result = interpret(closed.jaxpr, closed.consts, [*jax.tree.leaves(x), *known], visit)[0]
    if isinstance(result, Tracked):
        _escape(result.label, on_escape)
    return value_of(result)


def _watching(on_product: OnProduct, on_offset: OnOffset | None, on_escape: OnEscape | None) -> Visit:
    """What follows labels through the equations of a program, or of a loop's body."""

    def visit(equation: Any, operands: list[Any], evaluate: Callable[[], list[Any]]) -> list[Any]:
        sides = [i for i, operand in enumerate(operands) if isinstance(operand, Tracked)]
        labels = [operands[i].label for i in sides]
        if not labels or equation.primitive.name == "stop_gradient":  # what has no gradient is no use
            return evaluate()
        uses = [i for i in sides if isinstance(operands[i].label, Use)]
        followed: list[Any] | None = None
        if len(uses) == 1:
            followed = _follow(equation, operands, uses[0], evaluate, on_product)
        elif len(labels) == 1 and isinstance(labels[0], Offset):
            kept = equation.primitive in (primitives.broadcast_in_dim_p, primitives.reshape_p)
            followed = [Tracked(labels[0], evaluate()[0], shared=True)] if kept else None
        elif on_offset is not None and equation.primitive is primitives.add_p and len(labels) == 2:
            followed = evaluate() if _note_offset(labels, on_offset) else None
        for label in labels:
            if followed is None or (uses and isinstance(label, Offset)):
                _escape(label, on_escape)
        return evaluate() if followed is None else followed

    return visit


def _escape(label: Any, on_escape: OnEscape | None) -> None:
    if on_escape is not None and isinstance(label, Use | Offset):
        on_escape(label.leaf)


def _labelled(number: int, leaf: Any, watched: set[int], on_offset: OnOffset | None) -> Any:
    if number in watched:
        return Tracked(Use(number, tuple((axis,) for axis in range(jnp.ndim(leaf)))), leaf, shared=True)
    offset = on_offset is not None and jnp.ndim(leaf) == 1
    return Tracked(Offset(number), leaf, shared=True) if offset else leaf


def _note_offset(labels: list[Any], on_offset: OnOffset) -> bool:
    for offset, result in (labels, labels[::-1]):
        if isinstance(offset, Offset) and isinstance(result, Result):
            on_offset(offset.leaf, result.leaf)
            return True
    return False


def _follow(
    equation: Any, operands: list[Any], side: int, evaluate: Callable[[], list[Any]], on_product: OnProduct
) -> list[Any] | None:
    """What becomes of an equation that a leaf enters; ``None`` where the leaf is lost."""
    label, value = operands[side].label, operands[side].value
    leaf, groups, scale = label
    if equation.primitive is primitives.transpose_p:
        moved = tuple(groups[axis] for axis in equation.params["permutation"])
        return [Tracked(Use(leaf, moved, scale), evaluate()[0], shared=True)]
    if equation.primitive is primitives.reshape_p:
        results = evaluate()
        joined = _joined(groups, value.shape, results[0].shape)
        return None if joined is None else [Tracked(Use(leaf, joined, scale), results[0], shared=True)]
    if equation.primitive is primitives.mul_p:
        results = evaluate()
        other = jnp.asarray(value_of(operands[1 - side]))
        other = other.reshape((1,) * len(groups)) if other.ndim == 0 else other
        if any(len(group) != 1 for group in groups) or other.ndim != len(groups) or results[0].shape != value.shape:
            return None
        own = jnp.transpose(other, [axis for axis, _ in sorted(enumerate(groups), key=lambda item: item[1])])
        whole = own if scale is None else scale * own
        return [Tracked(Use(leaf, groups, whole), results[0], shared=True)]
    if equation.primitive is primitives.scan_p:
        product = loop_product(equation, operands, side, evaluate, lambda seen, lost: _watching(seen, None, lost))
    else:
        product = product_of(equation, operands, side, evaluate)
    if product is None:
        return None
    result = on_product(product)
    if isinstance(result, list):
        return result
    return [Tracked(Result(leaf), result) if scale is None else result]  # what is added has other cotangents then


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
