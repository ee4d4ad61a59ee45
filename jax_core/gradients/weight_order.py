"""Weights with their axes in the order in which gradients come out of matrix products.

The gradient of a matrix that multiplies many vectors, a convolution's kernel among them, comes as ``(out, in)``, the
cotangents times the vectors. A network that stores the matrix otherwise (torch's kernels ``(out, in, *window)`` meet
windows of ``(*window, in)`` elements, flax's matrices are ``(in, out)``) has every row of a Jacobian copied into that
order. So rows are taken of weights in the order of gradients, and what was reduced from them is permuted once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import primitives
from jaxtyping import Array, Int

from jax_core.types import ModelFn, Params
from jax_core.xla.compiled import as_jit_argument, cached_by_shape
from jax_core.xla.interpret import Tracked, interpret, value_of

Groups = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Order:
    """An order of axes for each leaf of the parameters.

    Attributes:
        axes: As for ``transpose``, a tuple a leaf.
    """

    axes: tuple[tuple[int, ...], ...]

    @property
    def as_stored(self) -> bool:
        """Whether nothing is moved."""
        return all(axes == tuple(range(len(axes))) for axes in self.axes)

    def of(self, params: Params) -> Params:
        """Parameters in this order."""
        leaves, treedef = jax.tree.flatten(params)
        return jax.tree.unflatten(treedef, [leaf.transpose(a) for leaf, a in zip(leaves, self.axes, strict=True)])

    @property
    def inverse(self) -> Order:
        """From this order back to the one stored."""
        return Order(tuple(tuple(np.argsort(axes).tolist()) for axes in self.axes))

    def undo(self, params: Params) -> Params:
        """Parameters in this order as they were stored."""
        return self.inverse.of(params)

    def positions(self, params: Params) -> Int[np.ndarray, " P"]:
        """For each of the flattened parameters in this order, where it lies among those as stored."""
        shapes = [np.shape(leaf) for leaf in jax.tree.leaves(params)]
        starts = itertools.accumulate((math.prod(shape) for shape in shapes), initial=0)
        parts = [
            start + np.arange(math.prod(shape)).reshape(shape).transpose(axes).reshape(-1)
            for start, shape, axes in zip(starts, shapes, self.axes, strict=False)
        ]
        return np.concatenate(parts) if parts else np.zeros(0, int)

    def places(self, params: Params) -> Int[np.ndarray, " P"]:
        """For each of the flattened parameters as stored, where it lies among those in this order."""
        return self.inverse.positions(jax.eval_shape(self.of, params))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Ordered:
    """A model that takes its parameters in another order of axes."""

    model_fn: Callable[..., Any]
    order: Order = field(metadata={"static": True})
    chosen_lowerings = True

    def __call__(self, input: Any, params: Params) -> Any:
        """The model's output."""
        return self.model_fn(input, self.order.undo(params))


def in_order(model_fn: ModelFn, order: Order) -> ModelFn:
    """The model for parameters in an order: ``model(x, order.of(params))`` is ``model_fn(x, params)``."""
    return model_fn if order.as_stored else Ordered(as_jit_argument(model_fn), order)


class Use(NamedTuple):
    """The label of a parameter leaf on its way: the axes of the leaf that each axis of the value holds."""

    leaf: int
    groups: Groups


class Product(NamedTuple):
    """A matrix product of a parameter leaf.

    Attributes:
        leaf: Its number.
        out_axes: Its axes that the product keeps.
        in_axes: Its axes that are summed over.
        met: The other operand.
        over: The axes of that which are summed over.
        result: The product.
        weight_first: Whether the leaf's axes come first in it.
    """

    leaf: int
    out_axes: tuple[int, ...]
    in_axes: tuple[int, ...]
    met: Array
    over: Sequence[int]
    result: Array
    weight_first: bool


def find_order(model_fn: ModelFn, params: Params, example: Any) -> Order:
    """The order of gradients, from the shapes of one example; leaves that are no matrix of one product stay."""
    return _find_order(as_jit_argument(model_fn), params, example)


@cached_by_shape
def _find_order(model_fn: ModelFn, params: Params, example: Any) -> Order:
    leaves, found = jax.tree.leaves(params), {}

    def note(product: Product) -> Array:
        found[product.leaf] = (*product.out_axes, *product.in_axes)
        return product.result

    matrices = {i for i, leaf in enumerate(leaves) if leaf.ndim > 1 and leaf.size}
    jax.eval_shape(lambda x, p: run_watched(model_fn, p, x, matrices, note), example, params)
    return Order(tuple(found.get(i, tuple(range(leaf.ndim))) for i, leaf in enumerate(leaves)))


def run_watched(
    model_fn: ModelFn, params: Params, x: Any, watched: set[int], on_product: Callable[[Product], Array]
) -> Any:
    """The model's output, with ``on_product`` in the place of each matrix product that one of the leaves meets.

    A leaf is followed through transpositions and reshapes that join axes, as long as it is used once; products with
    batch axes are left alone.
    """

    def visit(equation: Any, operands: list[Any], evaluate: Callable[[], list[Any]]) -> list[Any]:
        results = evaluate()
        sides = [i for i, operand in enumerate(operands) if isinstance(operand, Tracked)]
        if len(sides) != 1:
            return results
        side = sides[0]
        (leaf, groups), value = operands[side]
        if equation.primitive is primitives.transpose_p:
            moved = tuple(groups[axis] for axis in equation.params["permutation"])
            return [Tracked(Use(leaf, moved), results[0])]
        if equation.primitive is primitives.reshape_p:
            joined = _joined(groups, value.shape, results[0].shape)
            return results if joined is None else [Tracked(Use(leaf, joined), results[0])]
        if equation.primitive is primitives.dot_general_p:
            contracted, batched = equation.params["dimension_numbers"]
            if not batched[side]:
                rest = [i for i in range(len(groups)) if i not in contracted[side]]
                out_axes, in_axes = (tuple(a for i in some for a in groups[i]) for some in (rest, contracted[side]))
                met, over = operands[1 - side], contracted[1 - side]
                return [on_product(Product(leaf, out_axes, in_axes, met, over, results[0], weight_first=side == 0))]
        return results

    closed = jax.make_jaxpr(model_fn)(x, params)
    known = [
        Tracked(Use(i, tuple((axis,) for axis in range(jnp.ndim(leaf)))), leaf) if i in watched else leaf
        for i, leaf in enumerate(jax.tree.leaves(params))
    ]
    return value_of(interpret(closed.jaxpr, closed.consts, [*jax.tree.leaves(x), *known], visit)[0])


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
