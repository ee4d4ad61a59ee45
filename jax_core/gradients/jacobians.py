r"""Jacobians of a network's outputs, one row per output, with the gradients of some layers left in factors.

A layer is found in the traced network, whatever library wrote it: a parameter that is used once, in a matrix product
with few vectors. A zero added to that product's result gives, by reverse mode, the cotangents there; with the vectors
they are all of the layer's gradient (see :mod:`jax_core.gradients.factored`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_core.gradients.factored import FactoredRows, Layout, Slot
from jax_core.gradients.weight_order import Order, Product, in_order, run_watched
from jax_core.types import ModelFn, Params

_WORTH = 2**12  # elements of a matrix from which two factors beat written-out gradients


def jacobian(model_fn: ModelFn, params: Params, x: Any) -> tuple[Float[Array, " C"], Float[Array, "C P"]]:
    """Output of one example, flattened, and its Jacobian over the flattened parameters. Traceable."""
    output, pull = jax.vjp(lambda p: model_fn(x, p).reshape(-1), params)

    def row(cotangent: Array) -> Array:
        return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(pull(cotangent)[0])])

    return output, jax.vmap(row)(jnp.eye(output.size, dtype=output.dtype))


def find_layout(model_fn: ModelFn, params: Params, example: Any) -> Layout:
    """Which leaves stay in factors, from the shapes of one example; the rest are written out.

    They are those of dense layers, and of convolutions over maps so small that the vectors at their positions are
    fewer than the outputs, about; stored as ``(out, *in)`` (see :mod:`jax_core.gradients.weight_order`).
    """
    outputs = math.prod(jax.eval_shape(model_fn, example, params).shape)
    found: dict[int, int] = {}

    def note(leaf: int, vectors: Array, product: Product) -> Array:
        count, width = vectors.shape
        if count == 1 or count * (width + outputs) <= outputs * width:  # operations with one vector of a block
            found[leaf] = count
        return product.result

    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(params)]
    sizes = [math.prod(shape) for shape in shapes]
    matrices = {i for i, shape in enumerate(shapes) if len(shape) > 1 and sizes[i] >= _WORTH}
    if matrices:
        jax.eval_shape(lambda x, p: _run(model_fn, p, x, matrices, note), example, params)
    starts = itertools.accumulate(sizes[:-1], initial=0)
    slots = [Slot(i, start, shapes[i], found.get(i, 1)) for i, start in enumerate(starts)]
    return Layout(
        tuple(slot for slot in slots if slot.leaf not in found), tuple(slot for slot in slots if slot.leaf in found)
    )


def layout_in_order(model_fn: ModelFn, params: Params, example: Any, order: Order) -> Layout:
    """:func:`find_layout` of parameters in an order, which are not moved for that."""
    return find_layout(in_order(model_fn, order), jax.eval_shape(order.of, params), example)


def factored_jacobian(
    model_fn: ModelFn, params: Params, inputs: Any, layout: Layout
) -> tuple[Float[Array, "B C"], FactoredRows]:
    """Outputs of a batch, flattened, and their Jacobians, factored as the layout says. Traceable."""
    leaves, treedef = jax.tree.flatten(params)
    factored = [slot.leaf for slot in layout.factored]

    def one(x: Any) -> tuple[Array, Array, list[Array], list[Array]]:
        def output(plain: list[Array], probes: dict[int, Array]) -> tuple[Array, list[Array]]:
            vectors: dict[int, Array] = {}

            def tap(leaf: int, met: Array, product: Product) -> Array:
                vectors[leaf] = met
                probe = probes[leaf].T if product.weight_first else probes[leaf]
                return product.result + probe.reshape(product.result.shape)

            rest = iter(plain)
            whole = [leaf if i in probes else next(rest) for i, leaf in enumerate(leaves)]
            out = _run(model_fn, jax.tree.unflatten(treedef, whole), x, set(probes), tap)
            return out.reshape(-1), [vectors[leaf] for leaf in factored]

        probes = {
            slot.leaf: jnp.zeros((slot.vectors, slot.shape[0]), leaves[slot.leaf].dtype) for slot in layout.factored
        }
        out, pull, vectors = jax.vjp(output, [leaves[slot.leaf] for slot in layout.plain], probes, has_aux=True)

        def row(cotangent: Array) -> tuple[Array, list[Array]]:
            gradients, cotangents = pull(cotangent)
            flat = [gradient.reshape(-1) for gradient in gradients] or [jnp.zeros(0, out.dtype)]
            return jnp.concatenate(flat), [cotangents[leaf] for leaf in factored]

        rows, left = jax.vmap(row)(jnp.eye(out.size, dtype=out.dtype))
        return out, rows, left, vectors

    outputs, rows, left, right = jax.vmap(one)(inputs)
    return outputs, FactoredRows(rows, tuple(left), tuple(right), layout)


OnVectors = Callable[[int, Array, Product], Array]
"""``(leaf, vectors (S, I), product) -> product``."""


def _run(model_fn: ModelFn, params: Params, x: Any, matrices: set[int], on_vectors: OnVectors) -> Array:
    """The model's output, with ``on_vectors`` in the place of each product of vectors with one of the matrices."""

    def visit(product: Product) -> Array:
        met, over, axes = product.met, product.over, (*product.out_axes, *product.in_axes)
        if len(product.out_axes) != 1 or axes != tuple(range(len(axes))):
            return product.result  # stored in another order
        width = math.prod(met.shape[axis] for axis in over)
        return on_vectors(product.leaf, jnp.moveaxis(met, over, range(-len(over), 0)).reshape(-1, width), product)

    return run_watched(model_fn, params, x, matrices, visit)
