"""A torch loader as checked batches of arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import numpy as np

from bridge.tensors import to_jax
from jax_core.data.batches import Batch, as_batch
from jax_core.data.passes import Cache, LoaderPasses, finite_or_raise
from jax_core.data.trees import on_device_of
from jax_core.likelihoods import Categorical, Likelihood
from jax_core.types import Params


def read_first(loader: Iterable[Any]) -> Batch:
    """The first batch, tensors as they are.

    Raises:
        ValueError: If the loader yields nothing.
        TypeError: If the batch is neither a pair nor a mapping with ``input`` and ``target``.
    """
    for batch in loader:
        return as_batch(batch)
    raise ValueError("The loader is empty: it yielded no batch. Give a loader with at least one sample.")


def passes_over(
    loader: Iterable[Any],
    check: Callable[[int, Batch], None],
    *,
    params: Params,
    cache: Cache,
    cache_bytes: int,
    progress: bool,
) -> LoaderPasses:
    """Repeatable passes over a loader of tensors or numpy arrays, as JAX arrays beside the parameters."""
    return LoaderPasses(
        loader,
        transform=lambda batch: tuple(to_jax(as_batch(batch))),
        check=check,
        place=partial(on_device_of, params),
        cache=cache,
        cache_bytes=cache_bytes,
        progress="Reading data" if progress else None,
    )


def batch_check(
    shapes: list[tuple[Any, ...]], output_shape: tuple[int, ...], likelihood: Likelihood
) -> Callable[[int, Batch], None]:
    """What every batch must satisfy: the traced input's shape, finite values, targets that fit the loss.

    Args:
        shapes: Of one sample's inputs, as traced.
        output_shape: Of one sample's output.
        likelihood: The loss.
    """

    def check(number: int, batch: Batch) -> None:
        given = [np.shape(leaf)[1:] for leaf in jax.tree.leaves(batch.input)]
        if given != shapes:
            raise ValueError(
                f"Batch {number} holds inputs of shape {given} per sample, the model was traced with {shapes}. "
                "Resize or pad the inputs to one shape."
            )
        finite_or_raise(number, batch)
        _check_target(number, np.asarray(batch.target), output_shape, likelihood)

    return check


def _check_target(number: int, target: np.ndarray, output_shape: tuple[int, ...], likelihood: Likelihood) -> None:
    if isinstance(likelihood, Categorical) and target.dtype.kind in "iu":
        if target.shape[1:] != output_shape[:-1]:
            wanted = ", ".join(("batch", *map(str, output_shape[:-1]))) + ("," if len(output_shape) == 1 else "")
            raise ValueError(
                f"Batch {number} holds class indices of shape {target.shape}; outputs of shape (batch, "
                f"{', '.join(map(str, output_shape))}) take them in shape ({wanted}). Call target.squeeze(-1), or give "
                "probabilities."
            )
        return _check_classes(number, target, output_shape[-1], likelihood.ignore_index)
    if target.dtype.kind not in "fiub" and target.dtype.name != "bfloat16":
        raise TypeError(f"Batch {number} holds targets of type {target.dtype}. Give numbers.")
    if isinstance(likelihood, Categorical) and target.shape[1:] != output_shape:
        raise TypeError(
            f"Batch {number} holds {target.dtype} targets of shape {target.shape}; classification takes integer class "
            f"indices, or probabilities of shape (batch, {', '.join(map(str, output_shape))}). Call target.long()."
        )
    if target.dtype.kind == "f" and not np.isfinite(target).all():
        raise ValueError(f"Batch {number} of the loader holds NaN or infinite targets. Remove those samples first.")
    if not isinstance(likelihood, Categorical) and target[:1].size != int(np.prod(output_shape)):
        raise ValueError(
            f"Batch {number} holds targets of shape {target.shape} for outputs of shape (batch, "
            f"{', '.join(map(str, output_shape))}). Give one target value per output."
        )
    return None


def _check_classes(number: int, target: np.ndarray, classes: int, ignore_index: int | None) -> None:
    counted = target if ignore_index is None else target[target != ignore_index]
    wrong = counted[(counted < 0) | (counted >= classes)]
    if wrong.size:
        raise ValueError(
            f"Batch {number} holds class {wrong.flat[0]}, but the model has {classes} outputs: targets must be from 0 "
            f"to {classes - 1}. Count classes from zero, or set ignore_index."
        )
