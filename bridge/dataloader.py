"""A torch loader as checked batches of arrays."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypeAlias

import jax
import numpy as np
import torch

from bridge.tensors import to_jax
from jax_core.data.batches import Batch, as_batch
from jax_core.data.passes import Cache, LoaderPasses, finite_or_raise
from jax_core.data.trees import on_device_of
from jax_core.types import Params

ToBatch: TypeAlias = Callable[[Any], Any]
"""From what a loader yields to an ``(input, target)`` pair."""

_TARGETS = ("target", "targets", "labels", "label", "y")
_REMEDY = "Pass to_batch=, a function from what the loader yields to an (input, target) pair."


def as_torch_batch(given: Any, to_batch: ToBatch | None = None) -> Batch:
    """Inputs and targets of what a loader yields.

    Args:
        given: A pair; a longer tuple, whose last entry is the target and the others the model's inputs; or a mapping
            with ``input`` and ``target``, or with ``labels`` (``label``, ``target``, ``targets``, ``y``) beside the
            keyword inputs of the model.
        to_batch: Makes a pair of anything else.

    Raises:
        TypeError: For anything else.
    """
    if to_batch is not None:
        given = to_batch(given)
    if isinstance(given, Mapping):
        return _of_mapping(given)
    if isinstance(given, tuple | list) and len(given) >= 2:
        return Batch(given[0] if len(given) == 2 else tuple(given[:-1]), given[-1])
    what = f"a {type(given).__name__}" + (f" of {len(given)}" if isinstance(given, tuple | list) else "")
    raise TypeError(f"A batch is an (input, target) pair or a mapping with 'input' and 'target', not {what}. {_REMEDY}")


def _of_mapping(given: Mapping[Any, Any]) -> Batch:
    if "input" in given:
        return as_batch({"input": given["input"], "target": given.get("target")})
    found = [key for key in _TARGETS if key in given]
    if len(found) == 1 and len(given) > 1:
        return Batch({key: value for key, value in given.items() if key != found[0]}, given[found[0]])
    reason = f"several of them could be the target: {found}" if len(found) > 1 else "none of them is the target"
    raise TypeError(
        f"A batch is a mapping with keys {sorted(map(str, given))}; {reason}. Name the inputs 'input' and the target "
        f"'target'. {_REMEDY}"
    )


def read_first(loader: Iterable[Any], to_batch: ToBatch | None = None) -> tuple[Batch, Iterable[Any]]:
    """The first batch, tensors as they are and the batch on axis 0 of all inputs, and the loader with it.

    Raises:
        ValueError: If the loader yields nothing.
        TypeError: If the batch is neither a pair nor a mapping, or an input is shared by all samples.
    """
    if not isinstance(loader, Iterable):
        raise TypeError(f"The loader is a {type(loader).__name__}. Give a DataLoader, or another iterable of batches.")
    for given in loader:
        batch = as_torch_batch(given, to_batch)
        batch = Batch(tensors(batch.input), batch.target)
        _check_batched(batch)
        # an iterator would not show it again
        return batch, itertools.chain([given], loader) if isinstance(loader, Iterator) else loader
    raise ValueError("The loader is empty: it yielded no batch. Give a loader with at least one sample.")


def _check_batched(batch: Batch) -> None:
    named = [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree.leaves_with_path(batch.input)]
    if not named:
        raise TypeError(f"The batch holds no input tensor. {_REMEDY}")
    counts = {name: leaf.shape[0] if leaf.ndim else None for name, leaf in named}
    first = next(iter(counts.values()))
    odd = [name for name, count in counts.items() if count != first or count is None]
    if odd:
        shapes = ", ".join(f"{name or 'input'} {tuple(leaf.shape)}" for name, leaf in named)
        raise TypeError(
            f"Input {odd[0] or 'input'} has no batch axis as long as the others' (shapes {shapes}). What all samples "
            "share (a graph's edges, one mask) belongs into the model, as a buffer; repeat it per sample otherwise."
        )


def tensors(tree: Any) -> Any:
    """Inputs with every leaf a tensor; numpy arrays are wrapped.

    Raises:
        TypeError: For a leaf that is neither.
    """

    def tensor(leaf: Any) -> torch.Tensor:
        if isinstance(leaf, str | bytes) or leaf is None:
            raise TypeError(f"The inputs hold {leaf!r}. Give torch tensors or numpy arrays, as the model takes them.")
        return leaf if isinstance(leaf, torch.Tensor) else torch.as_tensor(leaf)

    if isinstance(tree, Mapping) and not isinstance(tree, dict):  # BatchEncoding and its like
        tree = dict(tree)
    return jax.tree.map(tensor, tree, is_leaf=lambda leaf: leaf is None)


def passes_over(
    loader: Iterable[Any],
    check: Callable[[int, Batch], None],
    *,
    to_batch: ToBatch | None,
    params: Params,
    cache: Cache,
    cache_bytes: int,
    progress: bool,
) -> LoaderPasses:
    """Repeatable passes over a loader of tensors or numpy arrays, as JAX arrays beside the parameters."""

    def transform(given: Any) -> tuple[Any, Any]:
        batch = as_torch_batch(given, to_batch)
        return to_jax(tensors(batch.input)), to_jax(_numbers(batch.target))

    return LoaderPasses(
        loader,
        transform=transform,
        check=check,
        place=partial(on_device_of, params),
        cache=cache,
        cache_bytes=cache_bytes,
        progress="Reading data" if progress else None,
    )


def _numbers(target: Any) -> Any:
    """Targets that torch can hold.

    Raises:
        TypeError: For words and objects.
    """
    for leaf in jax.tree.leaves(target):
        if isinstance(leaf, str | bytes) or (isinstance(leaf, np.ndarray) and leaf.dtype.kind not in "fiub"):
            kind = leaf.dtype if isinstance(leaf, np.ndarray) else type(leaf).__name__
            raise TypeError(
                f"The loader yields targets of type {kind}. Give numbers: class indices for labels in words."
            )
    return target


def check_inputs(shapes: list[tuple[Any, ...]], number: int, batch: Batch) -> None:
    """Refuse a batch whose inputs are not as traced.

    Args:
        shapes: Of one sample's inputs, as traced.
        number: Of the batch.
        batch: The batch.

    Raises:
        ValueError: Naming the batch, for other shapes or values that are not finite.
    """
    given = [np.shape(leaf)[1:] for leaf in jax.tree.leaves(batch.input)]
    if given != shapes:
        raise ValueError(
            f"Batch {number} holds inputs of shape {given} per sample, the model was traced with {shapes}. "
            "Resize or pad the inputs to one shape."
        )
    finite_or_raise(number, batch)
