"""One pass over a loader as rows of a curvature, several for each example from one forward pass."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_core.data.batches import batch_size
from jax_core.gradients.cotangents import Cotangents, joined
from jax_core.gradients.factored import Layout
from jax_core.gradients.hessian_rows import HessianRows
from jax_core.gradients.pullbacks import Pullbacks, linearize
from jax_core.types import ModelFn, Params
from jax_core.xla.backend import platform
from jax_core.xla.chunks import example_shapes, forward_cost
from jax_core.xla.compiled import cached_by_shape

Carry = TypeVar("Carry")

_ACTIVATIONS = 32 * 2**20  # behind a chunk of examples
_GRADIENTS = 24 * 2**20  # of one row of each, below the cliff of xla/chunks.py
_CHUNK = 128  # examples
_POOL = 8  # chunks whose examples are sorted by their numbers of rows


@runtime_checkable
class Visit(Protocol):
    """What a pass does with its rows: traceable, and known by its value, which identifies the compiled programs."""

    @property
    def layout(self) -> Layout:
        """How rows are given."""
        ...

    def share(self, carry: Any, extra: Any, right: list[Array], counted: Array) -> tuple[Any, Any]:
        """Once for each chunk: the carry, and what all rows of an example share.

        Args:
            carry: Before.
            extra: Arrays that every step needs.
            right: The vectors ``(B, S, I)`` of each factored leaf, or the rows ``(B, S)`` of a table.
            counted: Which examples count, ``(B,)``; the rest pads the chunk.
        """
        ...

    def add(self, carry: Any, extra: Any, shared: Any, plain: Array, left: list[Array]) -> Any:
        """The carry with one row of each example, written out ``(B, Q)`` and as cotangents ``(B, S, O)``."""
        ...


class Chunk(NamedTuple):
    """Examples, how many of them count, and their rows: the first of each, the second; a missing one is zero."""

    input: Any
    counted: int
    cotangents: Iterable[Float[np.ndarray, "B *output"]]


class PullStream(HessianRows):
    r"""The rows of $G = R^\top R$ over a loader (see :mod:`jax_core.gradients.rows`), example by example, unscaled."""

    def fold(self, visit: Visit, start: Carry, extra: Any = None) -> Carry:
        """One pass, the carry updated in place; the buffers of the first are given up."""

        def advance(carry: Any, extra: Any, chunk: Chunk) -> Any:
            count = jnp.asarray(chunk.counted)
            carry, pulls, shared = _begin(visit, carry, extra, self.model_fn, self.params, chunk.input, count)
            for cotangents in chunk.cotangents:
                carry = _advance(visit, carry, extra, pulls, shared, cotangents)
            return carry

        return self.folded(lambda: self._chunks(visit.layout), advance, start, extra)

    def _chunks(self, layout: Layout) -> Iterator[Chunk]:
        pool, size, few = Pool(), 0, True
        for batch, sample, cotangents in self.batches_with_rows():
            size = size or plan_chunk(self.model_fn, self.params, example_shapes(batch.input), layout=layout)
            pool.add(batch.input, batch_size(batch), sample, cotangents)
            if pool.count >= _POOL * size:
                yield from pool.chunks(size)
                pool, few = Pool(), False
        if pool.count:
            # all data at once: no chunk is larger than they need
            yield from pool.chunks(min(size, 1 << (pool.count - 1).bit_length()) if few else size)


class Pool:
    """Examples with their rows, to be cut into chunks of examples that have about as many."""

    def __init__(self) -> None:
        """Begin with none."""
        self.count = 0
        self._inputs: list[Any] = []
        self._samples: list[Int[np.ndarray, " R"]] = []
        self._cotangents: list[Cotangents] = []

    def add(self, inputs: Any, count: int, sample: Int[np.ndarray, " R"], cotangents: Cotangents) -> None:
        """A batch, and the rows of its examples, in the order of these."""
        self._inputs.append(jax.tree.map(np.asarray, inputs))
        self._samples.append(sample + self.count)
        self._cotangents.append(cotangents)
        self.count += count

    def chunks(self, size: int) -> Iterator[Chunk]:
        """All of them, those with the most rows first."""
        sample, rows = np.concatenate(self._samples), joined(self._cotangents)
        numbers = np.bincount(sample, minlength=self.count)
        nth = np.arange(len(sample)) - (np.cumsum(numbers) - numbers)[sample]  # row of its example
        inputs = jax.tree.map(lambda *leaves: np.concatenate(leaves), *self._inputs)
        order = np.argsort(-numbers, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(self.count)
        for start in range(0, self.count, size):
            chosen = order[start : start + size]
            mine = (place[sample] >= start) & (place[sample] < start + size)
            # padded by repetition: a zero image may be outside a network's domain (a normalisation by zero)
            whole = np.pad(chosen, (0, size - len(chosen)), mode="edge")
            turns = _in_turn(rows[mine], nth[mine], place[sample[mine]] - start, size)
            yield Chunk(jax.tree.map(lambda leaf, at=whole: leaf[at], inputs), len(chosen), turns)


def _in_turn(
    rows: Cotangents, nth: Int[np.ndarray, " R"], place: Int[np.ndarray, " R"], size: int
) -> Iterator[Float[np.ndarray, "B *output"]]:
    """The first row of each example, then the second of each that has one, and so on; the others' are zero."""
    order = np.argsort(nth, kind="stable")
    ends = np.cumsum(np.bincount(nth))
    for start, end in itertools.pairwise([0, *ends]):
        chosen = order[start:end]
        turn = np.zeros((size, *rows.shape), rows.values.dtype)
        turn[place[chosen]] = rows[chosen].written()
        yield turn


@cached_by_shape
def plan_chunk(model_fn: ModelFn, params: Params, example: Any, *, layout: Layout) -> int:
    """Examples that are linearised at once."""
    vectors = sum(slot.vectors * (1 if slot.is_table else slot.width) for slot in layout.factored)
    forward = max(1, forward_cost(model_fn, params, example).bytes)
    row = max(1, 4 * (layout.row_size + vectors))
    if platform() != "cpu":
        return max(1, min(4096, 2**30 // (forward + row)))
    return max(1, min(_CHUNK, _ACTIVATIONS // forward, _GRADIENTS // row))


@partial(jax.jit, static_argnames="visit", donate_argnames="carry")
def _begin(
    visit: Visit, carry: Any, extra: Any, model_fn: ModelFn, params: Params, inputs: Any, count: Array
) -> tuple[Any, Pullbacks, Any]:
    pulls, right = linearize(model_fn, params, inputs, visit.layout)
    counted = jnp.arange(jax.tree.leaves(inputs)[0].shape[0]) < count
    carry, shared = visit.share(carry, extra, right, counted)
    return carry, pulls, shared


@partial(jax.jit, static_argnames="visit", donate_argnames="carry")
def _advance(visit: Visit, carry: Any, extra: Any, pulls: Pullbacks, shared: Any, cotangents: Array) -> Any:
    plain, left = pulls(cotangents.reshape(len(cotangents), -1))
    return visit.add(carry, extra, shared, plain, left)
