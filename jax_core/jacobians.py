r"""Jacobians of a network's outputs, one row per output, with the gradients of dense layers left in factors.

A dense layer is found in the traced network, whatever library wrote it: a parameter matrix that is used once, in a
matrix product with a single vector. A zero added to that product's result gives, by reverse mode, the cotangent there;
with the vector it is all of the layer's gradient (see :mod:`jax_core.factored`).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal, primitives
from jaxtyping import Array, Float

from jax_core.factored import FactoredRows, Layout, Slot
from jax_core.types import ModelFn, Params

_WORTH = 2**12  # elements of a matrix from which two factors beat written-out gradients


def jacobian(model_fn: ModelFn, params: Params, x: Any) -> tuple[Float[Array, " C"], Float[Array, "C P"]]:
    """Output of one example, flattened, and its Jacobian over the flattened parameters. Traceable."""
    output, pull = jax.vjp(lambda p: model_fn(x, p).reshape(-1), params)

    def row(cotangent: Array) -> Array:
        return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(pull(cotangent)[0])])

    return output, jax.vmap(row)(jnp.eye(output.size, dtype=output.dtype))


class Weight(NamedTuple):
    """A parameter leaf on its way, with nothing but transpositions behind it."""

    leaf: int
    value: Array
    transposed: bool


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
    closed = jax.make_jaxpr(model_fn)(x, params)
    leaves = jax.tree.leaves(params)
    known = [Weight(i, leaf, False) if i in matrices else leaf for i, leaf in enumerate(leaves)]
    output = _interpret(closed.jaxpr, closed.consts, [*jax.tree.leaves(x), *known], on_product)[0]
    return output.value if isinstance(output, Weight) else output


def _interpret(jaxpr: Any, consts: Any, arguments: list[Any], on_product: OnProduct) -> list[Any]:
    values: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))
    atoms = [atom for equation in jaxpr.eqns for atom in equation.invars] + list(jaxpr.outvars)
    uses = Counter(atom for atom in atoms if not isinstance(atom, Literal))

    def read(atom: Any) -> Any:
        if isinstance(atom, Literal):
            return atom.val
        value = values[atom]
        # a matrix that is used twice has the sum of two gradients
        return value.value if isinstance(value, Weight) and uses[atom] > 1 else value

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        if equation.primitive is primitives.jit_p:
            inner = equation.params["jaxpr"]
            results = _interpret(inner.jaxpr, inner.consts, operands, on_product)
        else:
            results = _follow(equation, operands, _evaluate(jaxpr, equation, operands), on_product)
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _evaluate(jaxpr: Any, equation: Any, operands: list[Any]) -> list[Any]:
    """One equation as a program of its own: how a primitive is bound is JAX's affair."""
    given = {
        atom: value.value if isinstance(value, Weight) else value
        for atom, value in zip(equation.invars, operands, strict=True)
        if not isinstance(atom, Literal)
    }
    # The description of arguments and results belongs to the whole program, and is checked against their number.
    named = jaxpr.debug_info._replace(arg_names=("",) * len(given), result_paths=("",) * len(equation.outvars))
    alone = jaxpr.replace(
        constvars=[], invars=[*given], outvars=list(equation.outvars), eqns=[equation], debug_info=named
    )
    return jax.core.eval_jaxpr(alone, [], *given.values())


def _follow(equation: Any, operands: list[Any], results: list[Any], on_product: OnProduct) -> list[Any]:
    """The results, with a transposed weight still known as one, and a tapped product in the place of its own."""
    if equation.primitive is primitives.transpose_p and isinstance(operands[0], Weight):
        turned = operands[0].transposed != (tuple(equation.params["permutation"]) == (1, 0))
        return [Weight(operands[0].leaf, results[0], turned)]
    if equation.primitive is primitives.dot_general_p:
        return [_tapped(operands, equation.params["dimension_numbers"], results[0], on_product)]
    return results


def _tapped(operands: list[Any], dimension_numbers: Any, result: Array, on_product: OnProduct) -> Array:
    """The product, handed to ``on_product`` if it is one of a single vector and one of the matrices."""
    (contracted, batched) = dimension_numbers
    sides = [i for i in (0, 1) if isinstance(operands[i], Weight)]
    if len(sides) != 1 or batched[0]:
        return result
    weight, vector = operands[sides[0]], operands[1 - sides[0]]
    axes = contracted[sides[0]]
    if len(axes) != 1 or vector.size != math.prod(weight.value.shape[a] for a in axes):
        return result
    in_axis = 1 - axes[0] if weight.transposed else axes[0]
    return on_product(weight, in_axis == 1, vector.reshape(-1), result)
