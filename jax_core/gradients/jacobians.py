r"""Jacobians of a network's outputs, one row per output, with the gradients of some layers left in factors.

A layer is found in the traced network, whatever library wrote it: a parameter that is used once, in a matrix product
with few vectors. A zero added to that product's result gives, by reverse mode, the cotangents there; with the vectors
they are all of the layer's gradient (see :mod:`jax_core.gradients.factored`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from jax_core.gradients.factored import FactoredRows, Layout, Slot
from jax_core.gradients.products import OnProduct, Product, run_watched
from jax_core.gradients.weight_order import Order, in_order
from jax_core.types import ModelFn, Params

_WORTH = 2**12  # elements of a matrix from which two factors beat written-out gradients


def jacobian(model_fn: ModelFn, params: Params, x: Any) -> tuple[Float[Array, " C"], Float[Array, "C P"]]:
    """Output of one example, flattened, and its Jacobian over the flattened parameters. Traceable."""
    output, pull = jax.vjp(lambda p: model_fn(x, p).reshape(-1), params)

    def row(cotangent: Array) -> Array:
        return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(pull(cotangent)[0])])

    return output, jax.vmap(row)(jnp.eye(output.size, dtype=output.dtype))


Worth: TypeAlias = Callable[[int, "Sides"], bool]
"""Whether a leaf that is a matrix of so many vectors stays in factors."""


class Sides(NamedTuple):
    """A matrix in a product: vectors of an example that it multiplies, outputs, inputs, and the model's outputs."""

    vectors: int
    outs: int
    width: int
    outputs: int


def by_cost(leaf: int, sides: Sides) -> bool:
    """Dense layers, and convolutions over maps so small that their vectors are fewer than the outputs, about."""
    count, outs, width, outputs = sides
    if outs * width < _WORTH:
        return False
    return count == 1 or count * (width + outputs) <= outputs * width  # operations with one vector of a block


def find_layout(model_fn: ModelFn, params: Params, example: Any, worth: Worth = by_cost) -> Layout:
    """Which leaves stay in factors, from the shapes of one example; the rest are written out.

    Only leaves stored as ``(*out, *in)`` can (see :mod:`jax_core.gradients.weight_order`).
    """
    outputs = math.prod(jax.eval_shape(model_fn, example, params).shape)
    found: dict[int, Sides] = {}

    def note(product: Product) -> Array:
        count, width = product.vectors().shape
        sides = Sides(count, sizes[product.leaf] // max(width, 1), width, outputs)
        if worth(product.leaf, sides):
            found[product.leaf] = sides
        return product.result

    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(params)]
    sizes = [math.prod(shape) for shape in shapes]
    matrices = {i for i, shape in enumerate(shapes) if len(shape) > 1 and sizes[i]}
    if matrices:
        jax.eval_shape(lambda x, p: _run(model_fn, p, x, matrices, note), example, params)
    starts = list(itertools.accumulate(sizes, initial=0))
    plain = [Slot(i, starts[i], shape) for i, shape in enumerate(shapes) if i not in found]
    factored = [Slot(i, starts[i], (s.outs, s.width), s.vectors) for i, s in sorted(found.items())]
    return Layout(tuple(plain), tuple(factored))


def layout_in_order(model_fn: ModelFn, params: Params, example: Any, order: Order, worth: Worth = by_cost) -> Layout:
    """:func:`find_layout` of parameters in an order, which are not moved for that."""
    return find_layout(in_order(model_fn, order), jax.eval_shape(order.of, params), example, worth)


def factored_jacobian(
    model_fn: ModelFn, params: Params, inputs: Any, layout: Layout
) -> tuple[Float[Array, "B C"], FactoredRows]:
    """Outputs of a batch, flattened, and their Jacobians, factored as the layout says. Traceable."""

    def one(x: Any) -> tuple[Array, Array, list[Array], list[Array]]:
        out, pull, vectors = pullback(model_fn, params, x, layout)
        return out, *jax.vmap(pull)(jnp.eye(out.size, dtype=out.dtype)), vectors

    outputs, rows, left, right = jax.vmap(one)(inputs)
    return outputs, FactoredRows(rows, tuple(left), tuple(right), layout)


def pullback(
    model_fn: ModelFn, params: Params, x: Any, layout: Layout
) -> tuple[Float[Array, " C"], Callable[[Array], tuple[Array, list[Array]]], list[Array]]:
    """Output of one example, flattened, and its gradients as the layout has them. Traceable.

    Returns:
        The output, the map (a pytree) from a cotangent to the gradients ``(Q,)`` of the leaves that are written out and
        the cotangents ``(S, O)`` of the products with the others, and the vectors ``(S, I)`` of these products.
    """
    leaves, treedef = jax.tree.flatten(params)
    factored = [slot.leaf for slot in layout.factored]

    def output(plain: list[Array], probes: dict[int, Array]) -> tuple[Array, list[Array]]:
        vectors: dict[int, Array] = {}

        def tap(product: Product) -> Array:
            vectors[product.leaf], probe = product.vectors(), probes[product.leaf]
            return product.add(probe if product.scale is None else probe * product.scale)

        rest = iter(plain)
        whole = [leaf if i in probes else next(rest) for i, leaf in enumerate(leaves)]
        out = _run(model_fn, jax.tree.unflatten(treedef, whole), x, set(probes), tap)
        return out.reshape(-1), [vectors[leaf] for leaf in factored]

    probes = {slot.leaf: jnp.zeros((slot.vectors, slot.shape[0]), leaves[slot.leaf].dtype) for slot in layout.factored}
    out, pull, vectors = jax.vjp(output, [leaves[slot.leaf] for slot in layout.plain], probes, has_aux=True)
    return out, Partial(partial(_as_laid_out, out.dtype, tuple(factored)), pull), vectors


def _as_laid_out(dtype: Any, factored: tuple[int, ...], pull: Any, cotangent: Array) -> tuple[Array, list[Array]]:
    gradients, cotangents = pull(cotangent)
    flat = [gradient.reshape(-1) for gradient in gradients] or [jnp.zeros(0, dtype)]
    return jnp.concatenate(flat), [cotangents[leaf] for leaf in factored]


def _run(model_fn: ModelFn, params: Params, x: Any, matrices: set[int], on_product: OnProduct) -> Array:
    """The model's output, with ``on_product`` in the place of each product with one of the matrices ``(*out, *in)``."""

    def visit(product: Product) -> Array:
        axes = (*product.out_axes, *product.in_axes)
        return on_product(product) if axes == tuple(range(len(axes))) else product.result  # else in another order

    return run_watched(model_fn, params, x, matrices, visit)
