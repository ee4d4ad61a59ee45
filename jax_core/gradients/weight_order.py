"""Weights with their axes in the order in which gradients come out of matrix products.

The gradient of a matrix that multiplies many vectors, a convolution's kernel among them, comes as ``(out, in)``, the
cotangents times the vectors. A network that stores the matrix otherwise (torch's kernels ``(out, in, *window)`` meet
windows of ``(*window, in)`` elements, flax's matrices are ``(in, out)``) has every row of a Jacobian copied into that
order. So rows are taken of weights in the order of gradients, and what was reduced from them is permuted once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from jax_core.gradients.product import Product, Results
from jax_core.gradients.products import run_watched
from jax_core.types import ModelFn, Params, pytree
from jax_core.xla.compiled import as_jit_argument, cached_by_shape


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


@pytree
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


def find_order(model_fn: ModelFn, params: Params, example: Any) -> Order:
    """The order of gradients, from the shapes of one example; leaves that are no matrix of products alone stay."""
    return _find_order(as_jit_argument(model_fn), params, example)


@cached_by_shape
def _find_order(model_fn: ModelFn, params: Params, example: Any) -> Order:
    leaves = jax.tree.leaves(params)
    found: dict[int, set[tuple[int, ...]]] = {}
    lost: set[int] = set()

    def note(product: Product) -> Results:
        stored = tuple(range(len(product.axes)))
        kept = product.is_table or not _is_apart(product, leaves[product.leaf].shape)
        found.setdefault(product.leaf, set()).add(stored if kept else product.axes)
        return product.result

    matrices = {i for i, leaf in enumerate(leaves) if leaf.ndim > 1 and leaf.size}
    jax.eval_shape(lambda x, p: run_watched(model_fn, p, x, matrices, note, None, lost.add), example, params)
    chosen = {leaf: next(iter(axes)) for leaf, axes in found.items() if len(axes) == 1 and leaf not in lost}
    return Order(tuple(chosen.get(i, tuple(range(leaf.ndim))) for i, leaf in enumerate(leaves)))


def _is_apart(product: Product, shape: tuple[int, ...]) -> bool:
    """Whether a matrix is stored with its outputs before or behind its inputs.

    Mixed, as in an attention's weights ``(head, in, out)``, no Kronecker product is one in the order as stored.
    """
    outs = set(product.out_axes)
    sides = [axis in outs for axis in sorted(product.axes) if shape[axis] > 1]
    return sum(a != b for a, b in itertools.pairwise(sides)) <= 1
