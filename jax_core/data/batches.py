"""Batches of a loader: their two accepted forms, their size, their fingerprint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_core.types import Data

_MIX = np.uint64(0x9E3779B97F4A7C15)


class Batch(NamedTuple):
    """Inputs and targets of a batch; the leading axis of every leaf counts samples."""

    input: Any
    target: Any


def as_batch(data: Data) -> Batch:
    """Read a mapping with ``input`` and ``target``, or an ``(input, target)`` pair.

    Raises:
        TypeError: For anything else.
    """
    if isinstance(data, Mapping) and "input" in data:
        return Batch(data["input"], data.get("target"))
    if isinstance(data, tuple | list) and len(data) == 2:
        return Batch(data[0], data[1])
    given = f"a mapping with keys {sorted(map(str, data))}" if isinstance(data, Mapping) else type(data).__name__
    raise TypeError(
        f"A batch is a mapping with 'input' and 'target' or an (input, target) pair, not {given}. "
        "Give a transform that makes one of the two."
    )


def batch_size(data: Data) -> int:
    """Samples in a batch: the leading axis of its first input leaf."""
    return int(jax.tree.leaves(as_batch(data).input)[0].shape[0])


def prefetched(iterator: Iterator[Any]) -> Iterator[Any]:
    """The items of an iterator, the next one made in a thread while the current one is worked on."""
    end, x64 = object(), jax.dtypes.canonicalize_dtype(np.float64) == np.float64

    def step() -> Any:
        with jax.enable_x64(x64):  # the mode belongs to a thread
            return next(iterator, end)

    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
        pending = pool.submit(step)
        while (item := pending.result()) is not end:
            pending = pool.submit(step)
            yield item


def pieces(batch: Batch, size: int) -> Iterator[Batch]:
    """The batch in pieces of ``size`` samples, the last one shorter."""
    total = batch_size(batch)
    if total <= size:
        yield batch
        return
    for start in range(0, total, size):
        yield _slice(batch, start, min(size, total - start))


@partial(jax.jit, static_argnums=2)
def _slice(batch: Batch, start: jax.Array | int, size: int) -> Batch:
    return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size), batch)


def evenly(total: int, most: int) -> int:
    """The size of pieces that part ``total`` samples as evenly as can be, ``most`` in each at most."""
    return -(-total // -(-total // most))


class KnownSizes:
    """The batch sizes of one pass that programs were compiled for: a ragged last batch needs no program of its own."""

    def __init__(self) -> None:
        self._compiled: set[int] = set()
        self._padded: set[int] = set()

    def fit(self, size: int) -> int:
        """The size to pad a batch to: the next known one, the first time that ``size`` is met; from then on its own."""
        known = min((other for other in self._compiled if other >= size), default=None)
        if known is None or (known > size and size in self._padded):
            self._compiled.add(size)
            return size
        self._padded.add(size)
        return known


def padded(samples: Any, missing: int) -> Any:
    """The pytree of samples with its last one repeated ``missing`` times."""
    if not missing:
        return samples
    return jax.tree.map(lambda leaf: jnp.concatenate([leaf, jnp.repeat(leaf[-1:], missing, axis=0)]), samples)


def fingerprint(data: Data) -> tuple[int, int]:
    """Number of samples and an order-independent hash of them.

    Each sample's bytes are reduced to 64 bits by a random linear form, mixed, and the samples' hashes are added
    modulo 2**64: two passes over the same samples agree, in whatever order and batches they come.
    """
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(as_batch(data)._asdict())]
    samples = leaves[0].shape[0]
    words = np.zeros(samples, np.uint64)
    for number, leaf in enumerate(leaves):
        rows = np.ascontiguousarray(leaf).reshape(samples, -1).view(np.uint8)
        padding = -rows.shape[1] % 8
        rows = np.pad(rows, ((0, 0), (0, padding))) if padding else rows
        integers = rows.view(np.uint64)
        weights = np.random.default_rng(number).integers(1, 2**63, integers.shape[1], dtype=np.uint64) * 2 + 1
        words = words * _MIX + integers @ weights
    words ^= words >> np.uint64(31)
    words *= _MIX
    words ^= words >> np.uint64(29)
    return samples, int(words.sum(dtype=np.uint64))
