r"""Jacobians of a network's outputs, one row per output, with the gradients of some layers left in factors.

A layer is found in the traced network, whatever library wrote it: a parameter that is used in matrix products alone,
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
from jax_core.gradients.product import Product, Results
from jax_core.gradients.products import OnEscape, OnProduct, run_watched
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
    """A matrix in a product: vectors of an example that it multiplies, outputs, inputs, and the model's outputs.

    Also whether it is a table, whose rows are looked up, and how often it is used.
    """

    vectors: int
    outs: int
    width: int
    outputs: int
    is_table: bool = False
    uses: int = 1


def by_cost(leaf: int, sides: Sides) -> bool:
    """Dense layers, and convolutions over maps so small that their vectors are fewer than the outputs, about."""
    count, outs, width, outputs, is_table, uses = sides
    if outs * width < _WORTH or is_table or uses > 1:
        return False
    return count == 1 or count * (width + outputs) <= outputs * width  # operations with one vector of a block


def find_layout(model_fn: ModelFn, params: Params, example: Any, worth: Worth = by_cost) -> Layout:
    """Which leaves stay in factors, from the shapes of one example; the rest are written out.

    Only leaves stored as ``(*out, *in)`` can (see :mod:`jax_core.gradients.weight_order`), and tables.
    """
    outputs = math.prod(jax.eval_shape(model_fn, example, params).shape)
    found: dict[int, list[Sides]] = {}
    lost: set[int] = set()

    def note(product: Product) -> Results:
        vectors, size = product.vectors(), sizes[product.leaf]
        width = shapes[product.leaf][0] if product.is_table else vectors.shape[1]
        sides = Sides(vectors.shape[0], size // max(width, 1), width, outputs, product.is_table)
        found.setdefault(product.leaf, []).append(sides)
        return product.result

    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(params)]
    sizes = [math.prod(shape) for shape in shapes]
    matrices = {i for i, shape in enumerate(shapes) if len(shape) > 1 and sizes[i]}
    if matrices:
        jax.eval_shape(lambda x, p: _run(model_fn, p, x, matrices, note, lost.add), example, params)
    joined = {i: _joined(uses) for i, uses in sorted(found.items()) if i not in lost and _alike(uses)}
    chosen = {i: sides for i, sides in joined.items() if worth(i, sides)}
    starts = list(itertools.accumulate(sizes, initial=0))
    plain = [Slot(i, starts[i], shape) for i, shape in enumerate(shapes) if i not in chosen]
    factored = [Slot(i, starts[i], _stored(s), s.vectors, s.is_table) for i, s in chosen.items()]
    return Layout(tuple(plain), tuple(factored))


def _alike(uses: list[Sides]) -> bool:
    return len({use._replace(vectors=0) for use in uses}) == 1


def _joined(uses: list[Sides]) -> Sides:
    return uses[0]._replace(vectors=sum(use.vectors for use in uses), uses=len(uses))


def _stored(sides: Sides) -> tuple[int, int]:
    return (sides.width, sides.outs) if sides.is_table else (sides.outs, sides.width)


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
        the cotangents ``(S, O)`` of the products with the others, and the vectors ``(S, I)`` of these products (rows
        ``(S,)`` of tables); where a leaf is used several times, one use after the other.
    """
    leaves, treedef = jax.tree.flatten(params)
    factored = [slot.leaf for slot in layout.factored]

    def output(plain: list[Array], probes: dict[int, Array]) -> tuple[Array, list[Array]]:
        vectors: dict[int, list[Array]] = {leaf: [] for leaf in factored}

        def tap(product: Product) -> Results:
            met, before = product.vectors(), vectors[product.leaf]
            start = sum(len(part) for part in before)
            before.append(met)
            probe = probes[product.leaf]
            probe = probe if len(probe) == len(met) else probe[start : start + len(met)]
            return product.add(probe if product.scale is None else probe * product.scale)

        rest = iter(plain)
        whole = [leaf if i in probes else next(rest) for i, leaf in enumerate(leaves)]
        out = _run(model_fn, jax.tree.unflatten(treedef, whole), x, set(probes), tap)
        return out.reshape(-1), [p[0] if len(p) == 1 else jnp.concatenate(p) for p in vectors.values()]

    probes = {slot.leaf: jnp.zeros((slot.vectors, slot.outs), leaves[slot.leaf].dtype) for slot in layout.factored}
    out, pull, vectors = jax.vjp(output, [leaves[slot.leaf] for slot in layout.plain], probes, has_aux=True)
    return out, Partial(partial(_as_laid_out, out.dtype, tuple(factored)), pull), vectors


def _as_laid_out(dtype: Any, factored: tuple[int, ...], pull: Any, cotangent: Array) -> tuple[Array, list[Array]]:
    gradients, cotangents = pull(cotangent)
    flat = [gradient.reshape(-1) for gradient in gradients] or [jnp.zeros(0, dtype)]
    return jnp.concatenate(flat), [cotangents[leaf] for leaf in factored]


def _run(
    model_fn: ModelFn,
    params: Params,
    x: Any,
    matrices: set[int],
    on_product: OnProduct,
    on_escape: OnEscape | None = None,
) -> Array:
    """The model's output, with ``on_product`` in the place of each product with one of the matrices ``(*out, *in)``."""

    def visit(product: Product) -> Results:
        if product.is_table or product.axes == tuple(range(len(product.axes))):
            return on_product(product)
        if on_escape is not None:
            on_escape(product.leaf)  # in another order
        return product.result

    return run_watched(model_fn, params, x, matrices, visit, None, on_escape)
