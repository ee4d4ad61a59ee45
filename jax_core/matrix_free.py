"""From products to matrices: dense, diagonal and blocks, a loader read once for all columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_core.data.trees import flattener, get_size
from jax_core.types import MatVec

_COLUMNS = 32  # vectors a vmapped product takes at once: enough to share the linearisation, few enough for the cache


def to_dense(mv: MatVec, layout: Any = None, *, block_size: int = _COLUMNS) -> Float[Array, "P P"]:
    """The matrix of a product, column by column.

    Args:
        mv: A product with flat vectors (``layout`` an int) or with pytrees (``layout`` such a pytree).
        layout: The dimension, or a pytree shaped like the argument.
        block_size: Columns computed at once.

    Returns:
        The matrix; a pytree is laid out as by ``flattener``.

    Raises:
        TypeError: If ``layout`` is missing.

    Example:
        >>> to_dense(lambda v: 2 * v[::-1], 2).tolist()
        [[0.0, 2.0], [2.0, 0.0]]
    """
    return _lowered(mv, lambda product: jnp.moveaxis(_columns(product, layout, block_size, _whole), 0, -1))


def diagonal(mv: MatVec | Float[Any, "P P"], layout: Any = None, *, block_size: int = _COLUMNS) -> Float[Array, " P"]:
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


class DiagonalEstimate(NamedTuple):
    """A diagonal and the standard error of each entry."""

    diagonal: Float[Array, " P"]
    standard_error: Float[Array, " P"]


def estimate_diagonal(
    mv: MatVec, layout: Any, *, key: Array, num_probes: int = 32, block_size: int = 8
) -> DiagonalEstimate:
    r"""The diagonal of a product from $\tfrac1K \sum_k v_k \odot A v_k$ with random signs $v_k$, for large models.

    Unbiased; the standard error comes from the spread over probes and falls as $K^{-1/2}$ (Bekas, Kokiopoulou and
    Saad, 2007, doi:10.1016/j.apnum.2007.01.003). :func:`diagonal` is exact and takes as many products as parameters.

    Args:
        mv: A product as in :func:`to_dense`; of a loader, each block of probes is one pass.
        layout: The dimension, or a pytree shaped like the argument.
        key: Random key.
        num_probes: $K$, at least two.
        block_size: Probes computed at once.

    Raises:
        ValueError: If ``num_probes`` is below two, which leaves no spread to estimate the error from.
    """
    if num_probes < 2:
        raise ValueError(f"num_probes={num_probes}: give at least two, or the error cannot be estimated.")
    size, block = block_product(mv, layout)
    dtype = jnp.result_type(float) if isinstance(layout, int) else jnp.result_type(*jax.tree.leaves(layout))
    signs = jax.random.rademacher(key, (num_probes, size), dtype)
    blocks = [signs[start : start + block_size] for start in range(0, num_probes, block_size)]
    products = jnp.concatenate([signed * block(signed) for signed in blocks])
    return DiagonalEstimate(products.mean(0), products.std(0, ddof=1) / num_probes**0.5)


def _lowered(mv: MatVec, function: Callable[[MatVec], Any]) -> Any:
    """Apply ``function`` to the product of each batch where ``mv`` sums over a loader, else to ``mv``."""
    sum_over = getattr(mv, "sum_over", None)
    return function(mv) if sum_over is None else sum_over(lambda product: lambda: function(product))


def _whole(column: Array, i: Array) -> Array:
    return column


def _columns(mv: MatVec, layout: Any, block_size: int, take: Callable[[Array, Array], Array]) -> Array:
    """``take(A e_i, i)`` stacked over ``i``."""
    if layout is None:
        raise TypeError(
            "A product alone does not tell its size. Give layout: the dimension, or a pytree like its argument."
        )
    size, flat_mv = flat_product(mv, layout)
    dtype = jnp.result_type(float) if isinstance(layout, int) else jnp.result_type(*jax.tree.leaves(layout))
    if not size:
        return jnp.zeros((0, 0) if take is _whole else (0,), dtype)

    def column(i: Array) -> Array:
        return take(flat_mv(jnp.zeros(size, dtype).at[i].set(1.0)), i)

    return jax.lax.map(column, jnp.arange(size), batch_size=min(block_size, size))


def flat_product(mv: MatVec, layout: Any) -> tuple[int, MatVec]:
    """The dimension and the product on flat vectors, for a layout that is an int or a pytree."""
    if isinstance(layout, int):
        return layout, mv
    flatten, unflatten = flattener(layout)
    return get_size(layout), lambda vector: flatten(mv(unflatten(vector)))


def block_product(mv: MatVec, layout: Any) -> tuple[int, Callable[[Float[Array, "K P"]], Float[Array, "K P"]]]:
    """The dimension, and the product with a block of flat rows, compiled once; of a loader, one pass a block."""
    map_product = getattr(mv, "map_product", None)
    size, flat = flat_product(mv, layout)
    if map_product is None:
        return size, jax.jit(jax.vmap(flat))

    def over_rows(product: Callable[..., Any]) -> Callable[..., Any]:
        return lambda rows, data: jax.vmap(flat_product(lambda v: product(v, data), layout)[1])(rows)

    return size, map_product(over_rows)
