"""A function of Jacobians over a batch of any size, a few examples at a time, by few compiled programs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
from jax.tree_util import Partial
from jaxtyping import Array, Float

from jax_core.data.trees import get_size
from jax_core.gradients.factored import FactoredRows, Layout
from jax_core.gradients.jacobians import factored_jacobian, jacobian, layout_in_order
from jax_core.gradients.rotated import Coordinates, kronecker_leaves, worth_rotating
from jax_core.gradients.subspace import Subspace
from jax_core.gradients.walk import OfBatches, Sizes, Walk, in_turn
from jax_core.gradients.weight_order import Order, find_order, in_order
from jax_core.operators import Projection
from jax_core.types import ModelFn, Params, pytree
from jax_core.xla.backend import platform
from jax_core.xla.chunks import forward_cost
from jax_core.xla.compiled import as_jit_argument, cached_by_shape
from jax_core.xla.convolutions import with_fast_convolutions
from jax_core.xla.precision import full_precision

_ROW_BYTES = 12 * 2**20  # Jacobian rows held at a time: they and their gradients stay below the 32 MiB cliff
_ACTIVATIONS = 4 * 2**20  # forward activations of the examples behind them, before the axis of outputs
_GROUP = 16  # chunks per compiled loop
_TOGETHER = 128  # examples that meet a basis at once, since it is large and read for each, ...
_TOGETHER_BYTES = 20 * 2**20  # ... as long as their rows stay below the cliff


Met: TypeAlias = Callable[[Coordinates, FactoredRows], Any]
"""What rotated rows become."""


class ProjectedJacobians(NamedTuple):
    r"""What a covariance needs of Jacobians, see :class:`~jax_core.operators.Projection`.

    $J Q U$ and $J Q \operatorname{diag}(w) Q^\top J^\top$, each ``None`` where there is none.
    """

    inner: Float[Array, "b C R"] | None
    gram: Float[Array, "b C C"] | None


def map_jacobians(
    model_fn: ModelFn,
    params: Params,
    function: Callable[[Array, Array], Any],
    *,
    sizes: Sizes | None = None,
    fitted: bool = False,
) -> OfBatches:
    """Make the function from a batch of inputs to ``function(outputs, jacobians)``, a few examples at a time.

    Batches of any size share one compiled program, which walks over the chunks of a piece of fixed size and leaves out
    those that are padding.

    Args:
        model_fn: ``model_fn(input, params)`` for one example.
        params: Where to linearise.
        function: From outputs ``(b, C)`` and Jacobians ``(b, C, P)`` to a pytree with leading axis ``b``. What it and
            ``model_fn`` bind as a ``Partial`` become arguments of the compiled programs.
        sizes: Examples per evaluation and evaluations per loop; chosen from the model's size by default.
        fitted: Whether small batches have programs of their own.
    """
    model, last = as_jit_argument(with_fast_convolutions(model_fn)), as_jit_argument(function)

    def bind(example: Any) -> Walk:
        evaluate = Partial(_of_jacobians, last, model, params)
        if sizes is not None or not fitted:
            return Walk(evaluate, sizes or _plan(model, params, example), False)
        chunk, group = _plan(model, params, example)
        return Walk(evaluate, Sizes(1 << chunk.bit_length() - 1, group), True)

    return OfBatches(bind)


def map_projected(
    model_fn: ModelFn,
    params: Params,
    basis: Subspace,
    function: Callable[[Array, ProjectedJacobians], Any],
    *,
    sizes: Sizes | None = None,
) -> OfBatches:
    """:func:`map_jacobians` for a function of :class:`ProjectedJacobians` Jacobians: some layers' stay in factors.

    Args:
        model_fn: ``model_fn(input, params)`` for one example.
        params: Where to linearise.
        basis: A projection over the flattened parameters.
        function: From outputs ``(b, C)`` and the projected Jacobians to a pytree with leading axis ``b``.
        sizes: As there. Small batches have a program of their own.
    """
    return _map_along(_projected, model_fn, params, basis, function, sizes)


def map_forms(
    model_fn: ModelFn,
    params: Params,
    basis: Subspace,
    function: Callable[[Array, Array], Any],
) -> OfBatches:
    r""":func:`map_projected` for a function of the forms $J A J^\top$ alone.

    Args:
        model_fn: ``model_fn(input, params)`` for one example.
        params: Where to linearise.
        basis: A projection of $A$ over the flattened parameters.
        function: From outputs ``(b, C)`` and forms ``(b, C, C)`` to a pytree with leading axis ``b``.
    """
    return _map_along(_form, model_fn, params, basis, function)


def _map_along(
    met: Met,
    model_fn: ModelFn,
    params: Params,
    basis: Subspace,
    function: Callable[..., Any],
    sizes: Sizes | None = None,
) -> OfBatches:
    model, last = as_jit_argument(with_fast_convolutions(model_fn)), as_jit_argument(function)

    def bind(example: Any) -> Walk:
        order = find_order(model, params, example)
        known = basis.projection
        weighted = known.weights is not None and known.weights.ndim > 0
        how = {"order": order, "kronecker": kronecker_leaves(known.basis), "weighted": weighted}
        chosen, layout = _plan_projected(model, params, example, **how)
        cut = basis.cut(params, order, layout)
        return Walk(_Along(met, last, model, params, cut, order, layout), sizes or chosen, sizes is None)

    return OfBatches(bind)


def map_rotated(
    model_fn: ModelFn,
    params: Params,
    basis: Subspace,
    prepare: Callable[[Projection], Any],
    function: Callable[..., Any],
) -> OfBatches:
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
    def bind(example: Any) -> Walk:
        order = find_order(model, params, example)
        how = {"order": order, "kronecker": kronecker_leaves(basis.projection.basis), "weighted": True}
        chosen, layout = _plan_projected(model, params, example, **how)
        if not prepared or prepared[0][0] != order:
            prepared[:] = [(order, prepare(basis.projection.permute(order.positions(params))))]
        cut = basis.cut(params, order, layout)
        bound = Partial(_of_rotated, last, prepared[0][1])
        return Walk(_Along(_written, bound, model, params, cut, order, layout), chosen, True)

    return OfBatches(bind)


def _projected(basis: Coordinates, rotated: FactoredRows) -> ProjectedJacobians:
    inner = None if basis.columns is None else rotated.times_rows(basis.columns)
    return ProjectedJacobians(inner, basis.gram(rotated))


def _form(basis: Coordinates, rotated: FactoredRows) -> Array:
    return basis.form(rotated)


def _written(basis: Coordinates, rotated: FactoredRows) -> Array:
    return rotated.dense()


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


@jax.jit
def _of_jacobians(function: Callable[..., Any], model_fn: ModelFn, params: Params, inputs: Any, count: Any) -> Any:
    """The first ``count`` chunks of a piece, whose leaves have shape ``(group, chunk, ...)``; the rest stays zero."""

    def result(i: Any) -> Any:
        return function(*jax.vmap(lambda x: jacobian(model_fn, params, x))(_chunk(inputs, i)))

    return in_turn(result, count, jax.tree.leaves(inputs)[0].shape[0])


@pytree
@dataclass(frozen=True)
class _Along:
    """:func:`_of_projected` with all but a piece of inputs bound; equal structures of two of them are one program."""

    met: Met = field(metadata={"static": True})
    function: Callable[..., Any]
    model_fn: ModelFn
    params: Params
    basis: Coordinates
    order: Order = field(metadata={"static": True})
    layout: Layout = field(metadata={"static": True})

    def __call__(self, inputs: Any, count: Any) -> Any:
        how = {"met": self.met, "order": self.order, "layout": self.layout}
        return _of_projected(self.function, self.model_fn, self.params, self.basis, inputs, count, **how)


@partial(jax.jit, static_argnames=("met", "order", "layout"))
def _of_projected(
    function: Callable[..., Any],
    model_fn: ModelFn,
    params: Params,
    basis: Coordinates,
    inputs: Any,
    count: Any,
    *,
    met: Met,
    order: Order,
    layout: Layout,
) -> Any:
    """The same with the rows of all chunks before they meet the basis."""

    def rows_of(i: Any) -> tuple[Array, FactoredRows]:
        # Put in order here, where XLA cancels it against the model's own transpositions.
        return factored_jacobian(in_order(model_fn, order), order.of(params), _chunk(inputs, i), layout)

    outputs, rows = in_turn(rows_of, count, jax.tree.leaves(inputs)[0].shape[0])
    return function(outputs, met(basis, basis.rotate(rows)))


def _chunk(inputs: Any, i: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[i], inputs)
