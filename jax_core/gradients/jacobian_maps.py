"""A function of Jacobians over a batch of any size, a few examples at a time, by few compiled programs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from jax_core.data.batches import padded
from jax_core.data.trees import get_size
from jax_core.gradients.factored import FactoredRows, Layout
from jax_core.gradients.jacobians import factored_jacobian, jacobian, layout_in_order
from jax_core.gradients.rotated import Coordinates, kronecker_leaves, worth_rotating
from jax_core.gradients.subspace import Subspace
from jax_core.gradients.weight_order import Order, find_order, in_order
from jax_core.operators import Projection
from jax_core.types import ModelFn, Params
from jax_core.xla.backend import platform
from jax_core.xla.chunks import example_shapes, forward_cost
from jax_core.xla.compiled import as_jit_argument, cached_by_shape
from jax_core.xla.convolutions import with_fast_convolutions
from jax_core.xla.memory import half_after
from jax_core.xla.precision import full_precision

_ROW_BYTES = 12 * 2**20  # Jacobian rows held at a time: they and their gradients stay below the 32 MiB cliff
_ACTIVATIONS = 4 * 2**20  # forward activations of the examples behind them, before the axis of outputs
_GROUP = 16  # chunks per compiled loop
_TOGETHER = 64  # examples that meet a basis at once, since it is large and read for each, ...
_TOGETHER_BYTES = 20 * 2**20  # ... as long as their rows stay below the cliff


class Sizes(NamedTuple):
    """Examples per evaluation and evaluations per compiled loop."""

    chunk: int
    group: int


class ProjectedJacobians(NamedTuple):
    r"""What a covariance needs of Jacobians, see :class:`~jax_core.operators.Projection`.

    $J Q U$ and $J Q \operatorname{diag}(w) Q^\top J^\top$, each ``None`` where there is none.
    """

    inner: Float[Array, "b C R"] | None
    gram: Float[Array, "b C C"] | None


def map_jacobians(
    model_fn: ModelFn, params: Params, function: Callable[[Array, Array], Any], *, sizes: Sizes | None = None
) -> Callable[[Any], Any]:
    """Make the function from a batch of inputs to ``function(outputs, jacobians)``, a few examples at a time.

    Batches of any size share one compiled program, which walks over the chunks of a piece of fixed size and leaves out
    those that are padding.

    Args:
        model_fn: ``model_fn(input, params)`` for one example.
        params: Where to linearise.
        function: From outputs ``(b, C)`` and Jacobians ``(b, C, P)`` to a pytree with leading axis ``b``. What it and
            ``model_fn`` bind as a ``Partial`` become arguments of the compiled programs.
        sizes: Examples per evaluation and evaluations per loop; chosen from the model's size by default.
    """
    model, last = as_jit_argument(with_fast_convolutions(model_fn)), as_jit_argument(function)

    @full_precision
    def run(inputs: Any) -> Any:
        chosen = sizes or _plan(model, params, example_shapes(inputs))
        return _in_pieces(partial(_of_jacobians, last, model, params), inputs, chosen)

    return run


def map_projected(
    model_fn: ModelFn,
    params: Params,
    basis: Subspace,
    function: Callable[[Array, ProjectedJacobians], Any],
    *,
    sizes: Sizes | None = None,
) -> Callable[[Any], Any]:
    """:func:`map_jacobians` for a function of :class:`ProjectedJacobians` Jacobians: some layers' stay in factors.

    Args:
        model_fn: ``model_fn(input, params)`` for one example.
        params: Where to linearise.
        basis: A projection over the flattened parameters.
        function: From outputs ``(b, C)`` and the projected Jacobians to a pytree with leading axis ``b``.
        sizes: As there. Small batches have a program of their own.
    """
    model, last = as_jit_argument(with_fast_convolutions(model_fn)), as_jit_argument(function)

    @full_precision
    def run(inputs: Any) -> Any:
        total, example = jax.tree.leaves(inputs)[0].shape[0], example_shapes(inputs)
        order = find_order(model, params, example)
        known = basis.projection
        weighted = known.weights is not None and known.weights.ndim > 0
        how = {"order": order, "kronecker": kronecker_leaves(known.basis), "weighted": weighted}
        chosen, layout = _plan_projected(model, params, example, **how)
        cut = basis.cut(params, order, layout)
        evaluate = partial(_of_projected, last, model, params, cut, order=order, layout=layout)
        return _in_pieces(evaluate, inputs, sizes or _together(chosen, total))

    return run


def map_rotated(
    model_fn: ModelFn,
    params: Params,
    basis: Subspace,
    prepare: Callable[[Projection], Any],
    function: Callable[..., Any],
) -> Callable[[Any], Any]:
    """:func:`map_jacobians` for rows along the eigenvectors of a basis, written out.

    Args:
        model_fn: ``model_fn(input, params)`` for one example.
        params: Where to linearise.
        basis: A projection over the flattened parameters, of which only the eigenvectors are used here.
        prepare: From the projection, its coordinates in the order that rows have them, to what the function needs;
            called once.
        function: From that, outputs ``(b, C)`` and rows ``(b, C, P)`` to a pytree with leading axis ``b``.
    """
    model, last = as_jit_argument(with_fast_convolutions(model_fn)), as_jit_argument(function)
    prepared: list[tuple[Order, Any]] = []

    @full_precision
    def run(inputs: Any) -> Any:
        total, example = jax.tree.leaves(inputs)[0].shape[0], example_shapes(inputs)
        order = find_order(model, params, example)
        how = {"order": order, "kronecker": kronecker_leaves(basis.projection.basis), "weighted": True}
        chosen, layout = _plan_projected(model, params, example, **how)
        if not prepared or prepared[0][0] != order:
            prepared[:] = [(order, prepare(basis.projection.permute(order.positions(params))))]
        cut = basis.cut(params, order, layout)
        bound = Partial(_of_rotated, last, prepared[0][1])
        evaluate = partial(_of_projected, bound, model, params, cut, order=order, layout=layout, written=True)
        return _in_pieces(evaluate, inputs, _together(chosen, total))

    return run


def _of_rotated(function: Callable[..., Any], prepared: Any, outputs: Array, rows: Array) -> Any:
    return function(prepared, outputs, rows)


@cached_by_shape
def _plan(model_fn: ModelFn, params: Params, example: Any) -> Sizes:
    """Sizes for a model and the shapes of one example."""
    return _fitting(model_fn, params, example, get_size(params))


@cached_by_shape
def _plan_projected(
    model_fn: ModelFn,
    params: Params,
    example: Any,
    *,
    order: Order,
    kronecker: tuple[bool, ...] | None = None,
    weighted: bool = False,
) -> tuple[Sizes, Layout]:
    """The same for rows in factors, and their layout: as many rounds a loop as meet a basis at once."""
    layout = layout_in_order(model_fn, params, example, order, worth_rotating(kronecker))
    row_size = max(layout.row_size, layout.written_size) if weighted else layout.row_size
    sizes = _fitting(model_fn, params, example, row_size)
    if sizes.group == 1:
        return Sizes(min(sizes.chunk, _TOGETHER), 1), layout
    written = 4 * jax.eval_shape(model_fn, example, params).size * row_size
    together = max(1, min(_TOGETHER, _TOGETHER_BYTES // max(1, written)))
    chunk = 1 << min(sizes.chunk, together).bit_length() - 1
    return Sizes(chunk, max(1, together // chunk)), layout


def _fitting(model_fn: ModelFn, params: Params, example: Any, row_size: int) -> Sizes:
    """Sizes that keep rows of so many numbers, and the activations behind them, in reach of the caches."""
    size = forward_cost(model_fn, params, example)
    outputs = jax.eval_shape(model_fn, example, params).size
    fitting = min(_ROW_BYTES // max(1, 4 * outputs * row_size), _ACTIVATIONS // max(1, size.bytes))
    if platform() != "cpu":
        return Sizes(max(1, fitting * 16), 1)
    # A convolution primitive must not sit in a compiled loop.
    return Sizes(max(1, fitting), 1 if size.convolves else _GROUP)


def _together(sizes: Sizes, total: int) -> Sizes:
    """Not more than a small batch needs, by powers of two."""
    wanted = 1 << max(0, total - 1).bit_length()
    if sizes.group == 1:
        return Sizes(min(sizes.chunk, wanted), 1)
    chunk = min(sizes.chunk, wanted)
    return Sizes(chunk, min(sizes.group, wanted // chunk))


@jax.jit
def _of_jacobians(function: Callable[..., Any], model_fn: ModelFn, params: Params, inputs: Any, count: Any) -> Any:
    """The first ``count`` chunks of a piece, whose leaves have shape ``(group, chunk, ...)``; the rest stays zero."""

    def result(i: Any) -> Any:
        return function(*jax.vmap(lambda x: jacobian(model_fn, params, x))(_chunk(inputs, i)))

    return _in_turn(result, count, jax.tree.leaves(inputs)[0].shape[0])


@partial(jax.jit, static_argnames=("order", "layout", "written"))
def _of_projected(
    function: Callable[..., Any],
    model_fn: ModelFn,
    params: Params,
    basis: Coordinates,
    inputs: Any,
    count: Any,
    *,
    order: Order,
    layout: Layout,
    written: bool = False,
) -> Any:
    """The same with the rows of all chunks before they meet the basis."""

    def rows_of(i: Any) -> tuple[Array, FactoredRows]:
        # Put in order here, where XLA cancels it against the model's own transpositions.
        return factored_jacobian(in_order(model_fn, order), order.of(params), _chunk(inputs, i), layout)

    outputs, rows = _in_turn(rows_of, count, jax.tree.leaves(inputs)[0].shape[0])
    turned = basis.rotate(rows)
    if written:
        return function(outputs, turned.dense())
    inner = None if basis.columns is None else turned.times_rows(basis.columns)
    return function(outputs, ProjectedJacobians(inner, basis.gram(turned)))


def _chunk(inputs: Any, i: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[i], inputs)


def _in_pieces(evaluate: Callable[[Any, Any], Any], inputs: Any, sizes: Sizes) -> Any:
    """A function of pieces ``(group, chunk, ...)`` and their count of chunks, over a batch of any size."""
    (chunk, group), total = sizes, jax.tree.leaves(inputs)[0].shape[0]
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(inputs)):
        group = 1  # a loop whose number of rounds is an argument has no reverse mode
    if total == 0:
        one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, 1, *leaf.shape[1:]), leaf.dtype), inputs)
        shapes = jax.eval_shape(evaluate, one, 1)
        return jax.tree.map(lambda s: jnp.zeros((0, *s.shape[1:]), s.dtype), shapes)
    piece = chunk * group
    try:
        return _evaluated(evaluate, inputs, total, chunk, piece)
    except jax.errors.JaxRuntimeError as error:
        return _in_pieces(evaluate, inputs, Sizes(half_after(error, chunk, "the prediction"), group))


def _evaluated(evaluate: Callable[[Any, Any], Any], inputs: Any, total: int, chunk: int, piece: int) -> Any:
    whole = padded(inputs, -total % piece)
    parts = [
        evaluate(
            jax.tree.map(lambda leaf, at=start: _cut(leaf, at, piece, chunk), whole),
            -(-min(piece, total - start) // chunk),
        )
        for start in range(0, total, piece)
    ]
    joined = parts[0] if len(parts) == 1 else jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    return jax.tree.map(lambda leaf: leaf if leaf.shape[0] == total else leaf[:total], joined)


def _in_turn(evaluate: Callable[[Any], Any], count: Any, group: int) -> Any:
    """The results of the first ``count`` rounds, joined along their leading axis; the rest stays zero."""
    if group == 1:
        return evaluate(0)
    empty = jax.tree.map(lambda s: jnp.zeros((group, *s.shape), s.dtype), jax.eval_shape(evaluate, 0))

    def store(i: Any, results: Any) -> Any:
        return jax.tree.map(lambda buffer, new: buffer.at[i].set(new), results, evaluate(i))

    # The number of rounds is an argument: one program serves batches of every size.
    filled = jax.lax.fori_loop(0, count, store, empty)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), filled)


def _cut(leaf: Array, start: int, size: int, chunk: int) -> Array:
    # The start is an argument of this small program; a static slice would be compiled anew for each.
    piece = jax.lax.dynamic_slice_in_dim(leaf, start, size)
    return piece.reshape(-1, chunk, *piece.shape[1:])
