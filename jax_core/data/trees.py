"""Pytrees seen as vectors: flatten, measure, wrap."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding
from jaxtyping import Array, Shaped

from jax_core.types import Params


def get_size(tree: Params) -> int:
    """Number of scalars in a pytree (arrays or shape structs)."""
    return sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(tree))


def get_bytes(tree: Params) -> int:
    """Memory that the leaves of a pytree take (arrays or shape structs)."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def flattener(
    tree: Params,
) -> tuple[Callable[[Params], Shaped[Array, " P"]], Callable[[Shaped[Array, " P"]], Params]]:
    """Make the two maps between pytrees shaped like ``tree`` and flat vectors.

    Leaves are laid out in the order of ``jax.tree.leaves``, each in C order; the flat vector has the promoted dtype
    of all leaves, and ``unflatten`` gives every leaf its own dtype back.

    Args:
        tree: A pytree of arrays or of shape structs. Scalars and empty leaves are allowed.

    Returns:
        ``(flatten, unflatten)``, each the inverse of the other.
    """
    leaves, treedef = jax.tree.flatten(tree)
    shapes = [jnp.shape(leaf) for leaf in leaves]
    dtypes = [jnp.result_type(leaf) for leaf in leaves]
    ends = np.cumsum([math.prod(shape) for shape in shapes]).tolist()
    with jax.numpy_dtype_promotion("standard"):  # leaves of several dtypes are promoted on purpose
        flat_dtype = jnp.result_type(*dtypes) if dtypes else jnp.result_type(float)

    def flatten(values: Params) -> Shaped[Array, " P"]:
        parts = [jnp.ravel(leaf).astype(flat_dtype) for leaf in jax.tree.leaves(values)]
        return jnp.concatenate(parts) if parts else jnp.zeros((0,), flat_dtype)

    def unflatten(vector: Array) -> Params:
        if vector.shape != (ends[-1] if ends else 0,):
            raise ValueError(
                f"A vector of shape {vector.shape} cannot be laid out as a tree of {ends[-1] if ends else 0} scalars. "
                "Give unflatten a one-dimensional vector of that length."
            )
        parts = jnp.split(vector, ends[:-1]) if ends else []
        pairs = zip(parts, shapes, dtypes, strict=True)
        return jax.tree.unflatten(treedef, [p.reshape(shape).astype(dtype) for p, shape, dtype in pairs])

    return flatten, unflatten


def on_device_of(params: Params, tree: Any) -> Any:
    """``tree`` on the device that ``params`` are committed to, if they are.

    What a compiled program returns is committed where an argument was. A loop that feeds it back would compile a second
    program for it, if the first round's value was not.
    """
    first = next(iter(jax.tree.leaves(params)), None)
    if isinstance(first, jax.Array) and first.committed and isinstance(first.sharding, SingleDeviceSharding):
        return jax.device_put(tree, first.sharding)
    return tree


def zeros_like(tree: Params) -> Params:
    """Zeros in the shape of a pytree."""
    return jax.tree.map(jnp.zeros_like, tree)


def add(left: Params, right: Params) -> Params:
    """Leafwise sum of two pytrees."""
    return jax.tree.map(jnp.add, left, right)


def scale(factor: Any, tree: Params) -> Params:
    """Leafwise product with a scalar, every leaf keeping its dtype."""
    return jax.tree.map(lambda leaf: (factor * leaf).astype(leaf.dtype), tree)


def leaf_names(tree: Params) -> Sequence[str]:
    """A readable name for every leaf, in flattening order."""
    return [jax.tree_util.keystr(path).lstrip(".") for path, _ in jax.tree.leaves_with_path(tree)]


def non_finite_leaves(tree: Params) -> Iterator[str]:
    """Names of the leaves that hold a NaN or an infinity."""
    for name, leaf in zip(leaf_names(tree), jax.tree.leaves(tree), strict=True):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) and not bool(jnp.isfinite(leaf).all()):
            yield name
