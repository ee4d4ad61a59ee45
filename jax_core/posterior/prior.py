"""Prior precisions: one number, one per layer, or one per parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_core.data.trees import flattener, get_size
from jax_core.types import Params


def prior_vector(precision: Any, params: Params) -> Float[Array, " *P"]:
    """A prior precision as a scalar, or as a vector over the flattened parameters.

    Args:
        precision: A positive number; an array with one entry per leaf of ``params`` (per layer); an array with one
            entry per parameter; or a pytree like ``params`` of numbers or arrays.
        params: The parameters.

    Raises:
        ValueError: If the shape fits none of these, or an entry is not positive and finite.
    """
    leaves, size = jax.tree.leaves(params), get_size(params)
    dtype = jnp.result_type(*leaves) if leaves else jnp.result_type(float)
    if jax.tree.structure(precision) == jax.tree.structure(params) and not _is_leaf(params):
        spread = jax.tree.map(
            lambda p, leaf: jnp.broadcast_to(jnp.asarray(p, dtype), jnp.shape(leaf)), precision, params
        )
        return _positive(flattener(params)[0](spread))
    if isinstance(precision, Mapping | list | tuple) and not all(map(_is_number, precision)):
        raise ValueError(
            f"A prior precision given as {type(precision).__name__} must have the structure of the parameters: "
            f"{jax.tree.structure(params)}."
        )
    value = jnp.asarray(precision, dtype)
    if value.ndim == 0 or value.shape == (1,):
        return _positive(value.reshape(()))
    if value.shape == (size,):
        return _positive(value)
    if value.shape == (len(leaves),):
        return _positive(jnp.repeat(value, np.array([jnp.size(leaf) for leaf in leaves]), total_repeat_length=size))
    raise ValueError(
        f"A prior precision of shape {value.shape} fits neither one number, nor one per layer ({len(leaves)}), nor one "
        f"per parameter ({size})."
    )


def _is_leaf(tree: Any) -> bool:
    return jax.tree.structure(tree) == jax.tree.structure(0)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (jnp.ndim(value) == 0 and not isinstance(value, str))


def _positive(values: Array) -> Array:
    if not isinstance(values, jax.core.Tracer):
        host = np.asarray(values)
        if not (np.isfinite(host) & (host > 0)).all():
            raise ValueError("A prior precision must be positive and finite.")
    return values
