"""A torch loader as checked batches of arrays."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import jax
import numpy as np
from torch import nn

from bridge.arguments import as_taken
from bridge.template import InputTemplate
from bridge.tensors import to_jax
from jax_core.data.batches import Batch, as_batch
from jax_core.data.passes import Cache, LoaderPasses, finite_or_raise
from jax_core.data.trees import on_device_of
from jax_core.types import Params

ToBatch: TypeAlias = Callable[[Any], Any]
"""From what a loader yields to an ``(input, target)`` pair."""

_TARGETS = ("target", "targets", "labels", "label", "y")
_REMEDY = "Pass to_batch=, a function from what the loader yields to an (input, target) pair."


@dataclass(frozen=True)
class BatchReader:
    """From what a loader yields to inputs and targets.

    Attributes:
        to_batch: Makes a pair of anything that is none.
        dict_key_x: Of a mapping, an input that must be there; by default none must.
        dict_key_y: Of a mapping, the target, and everything else is the model's; by default ``labels``, ``label``,
            ``target``, ``targets`` or ``y``, whichever it has, or ``target`` beside ``input``.
        template: What the model takes of the inputs; before there is one, they stay as they are.
    """

    to_batch: ToBatch | None = None
    dict_key_x: str | None = None
    dict_key_y: str | None = None
    template: InputTemplate | None = None

    def __call__(self, given: Any) -> Batch:
        """A pair; a longer tuple, its last entry the target; a mapping; or what ``to_batch`` makes one of these.

        Raises:
            TypeError: For anything else, or a mapping without the keys.
        """
        batch = as_torch_batch(given, self)
        return batch if self.template is None else self.template.read(batch)


def as_torch_batch(given: Any, how: BatchReader | None = None) -> Batch:
    """Inputs and targets of what a loader yields.

    Args:
        given: A pair; a longer tuple, whose last entry is the target and the others the model's inputs; or a mapping
            with ``input`` and ``target``, or with ``labels`` (``label``, ``target``, ``targets``, ``y``) beside the
            inputs of the model.
        how: Other keys, or a function that makes a pair of anything else.

    Raises:
        TypeError: For anything else.
    """
    how = BatchReader() if how is None else how
    if how.to_batch is not None:
        given = how.to_batch(given)
    if isinstance(given, Mapping):
        return _of_mapping(given, how)
    if isinstance(given, tuple | list) and len(given) >= 2:
        return Batch(given[0] if len(given) == 2 else tuple(given[:-1]), given[-1])
    what = f"a {type(given).__name__}" + (f" of {len(given)}" if isinstance(given, tuple | list) else "")
    raise TypeError(f"A batch is an (input, target) pair or a mapping with 'input' and 'target', not {what}. {_REMEDY}")


def _of_mapping(given: Mapping[Any, Any], how: BatchReader) -> Batch:
    for option, key in (("dict_key_x", how.dict_key_x), ("dict_key_y", how.dict_key_y)):
        if key is not None and key not in given:
            raise TypeError(f"{option}={key!r}, and the batch is a mapping with keys {sorted(map(str, given))}.")
    if how.dict_key_y is None and "input" in given:
        return as_batch({"input": given["input"], "target": given.get("target")})
    found = [how.dict_key_y] if how.dict_key_y is not None else [key for key in _TARGETS if key in given]
    if len(found) == 1 and len(given) > 1:
        return Batch({key: value for key, value in given.items() if key != found[0]}, given[found[0]])
    reason = f"several of them could be the target: {found}" if len(found) > 1 else "none of them is the target"
    raise TypeError(
        f"A batch is a mapping with keys {sorted(map(str, given))}; {reason}. Name the inputs 'input' and the target "
        f"'target', or the target's key with dict_key_y=. {_REMEDY}"
    )


def read_first(loader: Iterable[Any], reader: BatchReader) -> tuple[Batch, Iterable[Any]]:
    """The first batch, tensors as they are, and the loader with it.

    Raises:
        ValueError: If the loader yields nothing.
        TypeError: If the batch is neither a pair nor a mapping.
    """
    if not isinstance(loader, Iterable):
        raise TypeError(f"The loader is a {type(loader).__name__}. Give a DataLoader, or another iterable of batches.")
    for given in loader:
        # an iterator would not show it again
        return reader(given), itertools.chain([given], loader) if isinstance(loader, Iterator) else loader
    raise ValueError("The loader is empty: it yielded no batch. Give a loader with at least one sample.")


def first_inputs(model: nn.Module, inputs: Any) -> Any:
    """The inputs of a first batch as the model takes them, the batch on axis 0 of all.

    Raises:
        TypeError: If an input is no tensor, or shared by all samples.
    """
    taken = as_taken(model, inputs)
    _check_batched(taken)
    return taken


def _check_batched(inputs: Any) -> None:
    named = [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree.leaves_with_path(inputs)]
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


def passes_over(
    loader: Iterable[Any],
    check: Callable[[int, Batch], None],
    *,
    reader: BatchReader,
    params: Params,
    cache: Cache,
    cache_bytes: int,
    progress: bool,
) -> LoaderPasses:
    """Repeatable passes over a loader of tensors or numpy arrays, as JAX arrays beside the parameters."""

    def transform(given: Any) -> tuple[Any, Any]:
        batch = reader(given)
        return to_jax(batch.input), to_jax(_numbers(batch.target))

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
