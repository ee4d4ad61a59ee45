"""A function of Jacobians over a batch of any size, a few examples at a time, by few compiled programs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jax_core.batches import padded
from jax_core.compiled import as_data, cached_by_shape
from jax_core.factored import Layout, Rows
from jax_core.footprint import footprint
from jax_core.jacobians import factored_jacobian, find_layout, jacobian
from jax_core.trees import get_size
from jax_core.types import ModelFn, Params
from jax_core.windows import suited_to_backend

_ROW_BYTES = 12 * 2**20  # Jacobian rows held at a time: they and their gradients stay below the 32 MiB cliff
_ACTIVATIONS = 4 * 2**20  # forward activations of the examples behind them, before the axis of outputs
_GROUP = 16  # chunks per compiled loop
_TOGETHER = 64  # examples that meet a posterior at once where rows are in factors: it is large, and read for each


class Sizes(NamedTuple):
    """Examples per evaluation and evaluations per compiled loop."""

    chunk: int
    group: int


@cached_by_shape
def _plan(model_fn: ModelFn, params: Params, example: Any, *, factored: bool) -> tuple[Sizes, Layout | None]:
    """Sizes for a model and the shapes of one example, and its layout where factors pay."""
    layout = find_layout(model_fn, params, example) if factored else None
    if layout is not None and 2 * layout.plain_size > layout.size:
        layout = None
    size = footprint(model_fn, params, example)
    outputs = jax.eval_shape(model_fn, example, params).size
    written = get_size(params) if layout is None else layout.plain_size
    fitting = min(_ROW_BYTES // max(1, 4 * outputs * written), _ACTIVATIONS // max(1, size.bytes))
    if jax.default_backend() != "cpu":
        return Sizes(max(1, fitting * 16), 1), layout
    # A convolution primitive must not sit in a compiled loop.
    return Sizes(max(1, fitting), 1 if size.convolves else _GROUP), layout


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
    return map_rows(model_fn, params, function, factored=False, sizes=sizes)


def map_rows(
    model_fn: ModelFn,
    params: Params,
    function: Callable[[Array, Rows], Any],
    *,
    factored: bool,
    sizes: Sizes | None = None,
) -> Callable[[Any], Any]:
    """:func:`map_jacobians` for a function that also takes :class:`~jax_core.factored.FactoredRows`, if ``factored``.

    It then meets many examples at once, a power of two of them; small batches have a program of their own.
    """
    model, last = as_data(suited_to_backend(model_fn)), as_data(function)

    def run(inputs: Any) -> Any:
        total = jax.tree.leaves(inputs)[0].shape[0]
        example = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), inputs)
        planned, layout = _plan(model, params, example, factored=factored)
        chunk, group = sizes or (planned if layout is None else _together(planned, total))
        evaluate = partial(_evaluate, model, last, params, layout=layout)
        if total == 0:
            one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, 1, *leaf.shape), leaf.dtype), example)
            shapes = jax.eval_shape(evaluate, one, 1)
            return jax.tree.map(lambda s: jnp.zeros((0, *s.shape[1:]), s.dtype), shapes)
        piece = chunk * group
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

    return run


def _together(sizes: Sizes, total: int) -> Sizes:
    """As many chunks a loop as meet the posterior at once."""
    wanted = min(_TOGETHER, 1 << max(0, total - 1).bit_length())
    if sizes.group == 1:
        return Sizes(min(sizes.chunk, wanted), 1)
    chunk = 1 << min(sizes.chunk, wanted).bit_length() - 1
    return Sizes(chunk, wanted // chunk)


@partial(jax.jit, static_argnames="layout")
def _evaluate(
    model_fn: ModelFn, function: Callable[..., Any], params: Params, inputs: Any, count: Any, *, layout: Layout | None
) -> Any:
    """The first ``count`` chunks of a piece, whose leaves have shape ``(group, chunk, ...)``; the rest stays zero."""

    def rows_of(i: Any) -> tuple[Array, Rows]:
        xs = jax.tree.map(lambda leaf: leaf[i], inputs)
        if layout is None:
            return jax.vmap(lambda x: jacobian(model_fn, params, x))(xs)
        return factored_jacobian(model_fn, params, xs, layout)

    group = jax.tree.leaves(inputs)[0].shape[0]
    if layout is None:
        return _in_turn(lambda i: function(*rows_of(i)), count, group)
    return function(*_in_turn(rows_of, count, group))


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
