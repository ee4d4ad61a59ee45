r"""Jacobians of a network's outputs, one row per output, with the gradients of dense layers left in factors.

A dense layer is found in the traced network, whatever library wrote it: a parameter matrix that is used once, in a
matrix product with a single vector. A zero added to that product's result gives, by reverse mode, the cotangent there;
with the vector it is all of the layer's gradient (see :mod:`jax_core.factored`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import primitives
from jaxtyping import Array, Float

from jax_core.factored import FactoredRows, Layout, Slot
from jax_core.interpret import Tracked, interpret, value_of
from jax_core.types import ModelFn, Params

_WORTH = 2**12  # elements of a matrix from which two factors beat written-out gradients


def jacobian(model_fn: ModelFn, params: Params, x: Any) -> tuple[Float[Array, " C"], Float[Array, "C P"]]:
    """Output of one example, flattened, and its Jacobian over the flattened parameters. Traceable."""
    output, pull = jax.vjp(lambda p: model_fn(x, p).reshape(-1), params)

    def row(cotangent: Array) -> Array:
        return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(pull(cotangent)[0])])

    return output, jax.vmap(row)(jnp.eye(output.size, dtype=output.dtype))


class Weight(NamedTuple):
    """The label of a parameter leaf on its way, with nothing but transpositions behind it."""

    leaf: int
    transposed: bool = False


def find_layout(model_fn: ModelFn, params: Params, example: Any) -> Layout:
    """Which leaves are those of dense layers, from the shapes of one example; the rest are written out."""
    found: dict[int, bool] = {}

    def note(weight: Weight, out_first: bool, vector: Array, result: Array) -> Array:
        found[weight.leaf] = out_first
        return result

    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(params)]
    sizes = [math.prod(shape) for shape in shapes]
    matrices = {i for i, shape in enumerate(shapes) if len(shape) == 2 and sizes[i] >= _WORTH}
    if matrices:
        jax.eval_shape(lambda x, p: _run(model_fn, p, x, matrices, note), example, params)
    starts = itertools.accumulate(sizes[:-1], initial=0)
    slots = [Slot(i, start, shapes[i], found.get(i, True)) for i, start in enumerate(starts)]
    return Layout(
        tuple(slot for slot in slots if slot.leaf not in found), tuple(slot for slot in slots if slot.leaf in found)
    )


def factored_jacobian(
    model_fn: ModelFn, params: Params, inputs: Any, layout: Layout
) -> tuple[Float[Array, "B C"], FactoredRows]:
    """Outputs of a batch, flattened, and their Jacobians, factored as the layout says. Traceable."""
    leaves, treedef = jax.tree.flatten(params)
    factored = [slot.leaf for slot in layout.factored]
    widths = [slot.shape[0 if slot.out_first else 1] for slot in layout.factored]

    def one(x: Any) -> tuple[Array, Array, list[Array], list[Array]]:
        def output(plain: list[Array], probes: dict[int, Array]) -> tuple[Array, list[Array]]:
            vectors: dict[int, Array] = {}

            def tap(weight: Weight, out_first: bool, vector: Array, result: Array) -> Array:
                vectors[weight.leaf] = vector
                return result + probes[weight.leaf].reshape(result.shape)

            rest = iter(plain)
            whole = [leaf if i in probes else next(rest) for i, leaf in enumerate(leaves)]
            out = _run(model_fn, jax.tree.unflatten(treedef, whole), x, set(probes), tap)
            return out.reshape(-1), [vectors[leaf] for leaf in factored]

        probes = {leaf: jnp.zeros(width, leaves[leaf].dtype) for leaf, width in zip(factored, widths, strict=True)}
        out, pull, vectors = jax.vjp(output, [leaves[slot.leaf] for slot in layout.plain], probes, has_aux=True)

        def row(cotangent: Array) -> tuple[Array, list[Array]]:
            gradients, cotangents = pull(cotangent)
            flat = [gradient.reshape(-1) for gradient in gradients] or [jnp.zeros(0, out.dtype)]
            return jnp.concatenate(flat), [cotangents[leaf] for leaf in factored]

        rows, left = jax.vmap(row)(jnp.eye(out.size, dtype=out.dtype))
        return out, rows, left, vectors

    outputs, rows, left, right = jax.vmap(one)(inputs)
    return outputs, FactoredRows(rows, tuple(left), tuple(right), layout)


OnProduct = Callable[[Weight, bool, Array, Array], Array]


def _run(model_fn: ModelFn, params: Params, x: Any, matrices: set[int], on_product: OnProduct) -> Array:
    """The model's output, with ``on_product`` in the place of each product of one vector with one of the matrices."""

    def visit(equation: Any, operands: list[Any], evaluate: Callable[[], list[Any]]) -> list[Any]:
        results = evaluate()
        if equation.primitive is primitives.transpose_p and isinstance(operands[0], Tracked):
            weight = operands[0].label
            turned = weight.transposed != (tuple(equation.params["permutation"]) == (1, 0))
            return [Tracked(Weight(weight.leaf, turned), results[0])]
        if equation.primitive is primitives.dot_general_p:
            return [_tapped(operands, equation.params["dimension_numbers"], results[0], on_product)]
        return results

    closed = jax.make_jaxpr(model_fn)(x, params)
    leaves = jax.tree.leaves(params)
    known = [Tracked(Weight(i), leaf) if i in matrices else leaf for i, leaf in enumerate(leaves)]
    return value_of(interpret(closed.jaxpr, closed.consts, [*jax.tree.leaves(x), *known], visit)[0])


def _tapped(operands: list[Any], dimension_numbers: Any, result: Array, on_product: OnProduct) -> Array:
    """The product, handed to ``on_product`` if it is one of a single vector and one of the matrices."""
    (contracted, batched) = dimension_numbers
    sides = [i for i in (0, 1) if isinstance(operands[i], Tracked)]
    if len(sides) != 1 or batched[0]:
        return result
    (weight, matrix), vector = operands[sides[0]], operands[1 - sides[0]]
    axes = contracted[sides[0]]
    if len(axes) != 1 or vector.size != matrix.shape[axes[0]]:
        return result
    in_axis = 1 - axes[0] if weight.transposed else axes[0]
    return on_product(weight, in_axis == 1, vector.reshape(-1), result)
