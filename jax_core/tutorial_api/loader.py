"""Any function of a batch, over a loader: what comes of each batch is joined by a reduction.

A reduction maps `(result of a batch, state)` to `(joined so far, state)`; its first state is `None`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jax_core.data import trees
from jax_core.data.batches import as_batch
from jax_core.types import Data
from jax_core.xla.compiled import jit_closure

Reduce = Callable[[Any, Any], tuple[Any, Any]]


def input_target_split(batch: Any) -> dict[str, Any]:
    """An `(input, target)` pair, or a mapping with these, as a mapping."""
    return as_batch(batch)._asdict()


def reduce_sum(res_new: Any, state: Any = None, *, keepdims: bool = True, axis: int = 0) -> tuple[Any, Any]:
    """Sum over an axis of every leaf, and over batches: `(running total, state)`."""
    summed = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=axis, keepdims=keepdims), res_new)
    total = summed if state is None else trees.add(state, summed)
    return total, total


def reduce_online_mean(res_new: Any, state: Any = None) -> tuple[Any, tuple[Any, Any]]:
    """Mean over the leading axis of every leaf, samples of all batches counting alike: `(running mean, state)`.

    A leaf without axes counts as one sample. The state is `(count, sum)`.
    """
    count = jax.tree.map(lambda leaf: leaf.shape[0] if leaf.ndim else 1, res_new)
    total = jax.tree.map(lambda leaf: leaf.sum(0) if leaf.ndim else leaf, res_new)
    if state is not None:
        count, total = jax.tree.map(operator.add, state[0], count), trees.add(state[1], total)
    return jax.tree.map(operator.truediv, total, count), (count, total)


def wrap_function_with_data_loader(
    function: Callable[..., Any],
    data_loader: Iterable[Any],
    transform: Callable[[Any], Data] = input_target_split,
    reduce: Reduce = reduce_online_mean,
    *,
    jit: bool = False,
) -> Callable[..., Any]:
    """`function(*args, data=batch, **kwargs)` over a loader as a function of `args` and `kwargs` alone.

    For a product with a vector take `DataLoaderMV`, which also proves that each pass shows the same samples.

    Args:
        function: Of a batch, by the name `data`.
        data_loader: Read once in each call.
        transform: Makes the batch of what the loader yields.
        reduce: Joins the results: `reduce_online_mean`, `reduce_sum`, `reduce_add`, `reduce_concat`.
        jit: Compile the function, once for each shape of a batch.

    Returns:
        A function that raises `ValueError` if the loader is empty.
    """
    program = jit_closure(lambda args, kwargs, data: function(*args, data=data, **kwargs)) if jit else None

    def over_batches(*args: Any, **kwargs: Any) -> Any:
        result = state = None
        empty = True
        for item in data_loader:
            data = transform(item)
            made = function(*args, data=data, **kwargs) if program is None else program(args, kwargs, data)
            result, state = reduce(made, state)
            empty = False
        if empty:
            raise ValueError("The loader is empty. Give at least one batch.")
        return result

    return over_batches


def execute_with_data_loader(
    function: Callable[..., Any],
    data_loader: Iterable[Any],
    transform: Callable[[Any], Data] = input_target_split,
    reduce: Reduce = reduce_online_mean,
    *,
    jit: bool = False,
    **kwargs: Any,
) -> Any:
    """`wrap_function_with_data_loader`, called at once with `kwargs`."""
    return wrap_function_with_data_loader(function, data_loader, transform, reduce, jit=jit)(**kwargs)
