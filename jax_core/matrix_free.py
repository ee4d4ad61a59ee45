"""From products to matrices: dense, diagonal and blocks, a loader read once for all columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_core.trees import create_pytree_flattener, get_size
from jax_core.types import MatVec

_COLUMNS = 32  # vectors a vmapped product takes at once: enough to share the linearisation, few enough for the cache


def to_dense(mv: MatVec, layout: Any = None, *, block_size: int = _COLUMNS) -> Float[Array, "P P"]:
    """The matrix of a product, column by column.

    Args:
        mv: A product with flat vectors (``layout`` an int) or with pytrees (``layout`` such a pytree).
        layout: The dimension, or a pytree shaped like the argument.
        block_size: Columns computed at once.

    Returns:
        The matrix; a pytree is laid out as by ``create_pytree_flattener``.

    Raises:
        TypeError: If ``layout`` is missing.
    """
    return _lowered(mv, lambda product: jnp.moveaxis(_columns(product, layout, block_size, lambda c, i: c), 0, -1))


def diagonal(mv: MatVec | Float[Array, "P P"], layout: Any = None, *, block_size: int = _COLUMNS) -> Float[Array, " P"]:
    """The diagonal of a product (or of a matrix), exactly, without holding the matrix.

    Args:
        mv: A product as in :func:`to_dense`, or a matrix.
        layout: The dimension, or a pytree shaped like the argument.
        block_size: Columns computed at once.

    Raises:
        TypeError: If ``mv`` is a product and ``layout`` is missing.
    """
    if not callable(mv):
        return jnp.diagonal(jnp.asarray(mv))
    return _lowered(mv, lambda product: _columns(product, layout, block_size, lambda column, i: column[i]))


def _lowered(mv: MatVec, function: Callable[[MatVec], Any]) -> Any:
    """Apply ``function`` to the product of each batch where ``mv`` sums over a loader, else to ``mv``."""
    sum_over = getattr(mv, "sum_over", None)
    return function(mv) if sum_over is None else sum_over(lambda product: lambda: function(product))


def _columns(mv: MatVec, layout: Any, block_size: int, take: Callable[[Array, Array], Array]) -> Array:
    """``take(A e_i, i)`` stacked over ``i``."""
    if layout is None:
        raise TypeError(
            "A product alone does not tell its size. Give layout: the dimension, or a pytree like its argument."
        )
    size, flat_mv = flat_product(mv, layout)
    dtype = jnp.result_type(float) if isinstance(layout, int) else jnp.result_type(*jax.tree.leaves(layout))
    if not size:
        return take(jnp.zeros((0, 0), dtype), jnp.zeros((0,), int))

    def column(i: Array) -> Array:
        return take(flat_mv(jnp.zeros(size, dtype).at[i].set(1.0)), i)

    return jax.lax.map(column, jnp.arange(size), batch_size=min(block_size, size))


def flat_product(mv: MatVec, layout: Any) -> tuple[int, MatVec]:
    """The dimension and the product on flat vectors, for a layout that is an int or a pytree."""
    if isinstance(layout, int):
        return layout, mv
    flatten, unflatten = create_pytree_flattener(layout)
    return get_size(layout), lambda vector: flatten(mv(unflatten(vector)))
