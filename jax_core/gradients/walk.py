"""Functions of batches of any size, a few examples at a time, by few compiled programs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
from jaxtyping import Array

from jax_core.data.batches import padded
from jax_core.types import pytree
from jax_core.xla.chunks import example_shapes
from jax_core.xla.memory import half_after
from jax_core.xla.precision import full_precision
from jax_core.xla.pullback import PullBack, with_pullback

_FINER = 32  # examples


class Sizes(NamedTuple):
    """Examples per evaluation and evaluations per compiled loop."""

    chunk: int
    group: int


@pytree
@dataclass(frozen=True)
class Walk:
    """A function of batches, a few examples at a time.

    Attributes:
        evaluate: Of a piece ``(group, chunk, ...)`` and its count of chunks.
        sizes: Of a piece.
        fitted: Whether a small batch has a smaller piece.
    """

    evaluate: Callable[[Any, Any], Any]
    sizes: Sizes = field(metadata={"static": True})
    fitted: bool = field(metadata={"static": True})

    def piece(self, total: int) -> int:
        """Examples that a batch of ``total`` is walked over in where it is differentiated."""
        chunk, group = self._sizes(total, reverse=True)
        return chunk * group

    def _sizes(self, total: int, *, reverse: bool) -> Sizes:
        if self.fitted:
            return _together(self.sizes, total)
        return Sizes(self.sizes.chunk, 1) if reverse else self.sizes

    @full_precision
    def __call__(self, inputs: Any) -> Any:
        """Of a batch of any size."""
        leaves = jax.tree.leaves(inputs)
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
        return _in_pieces(self.evaluate, inputs, self._sizes(leaves[0].shape[0], reverse=traced), traced=traced)


@dataclass(frozen=True)
class OfBatches:
    """A function of batches of any size.

    Attributes:
        bind: From the shapes of one example to the function as a pytree of all that it reads: what a program takes as
            an argument, to differentiate it for instance.
    """

    bind: Callable[[Any], Callable[[Any], Any]]

    def __call__(self, inputs: Any) -> Any:
        """Of a batch."""
        return self.bind(example_shapes(inputs))(inputs)

    def with_pullback(self, inputs: Any) -> tuple[Any, PullBack]:
        """The same and its pull-back, by two programs for this size; see :mod:`jax_core.xla.pullback`."""
        return with_pullback(self.bind(example_shapes(inputs)), inputs)

    def piece(self, inputs: Any) -> int:
        """Examples of which programs are made that differentiate a batch: more come in pieces of so many."""
        total = jax.tree.leaves(inputs)[0].shape[0]
        known = getattr(self.bind(example_shapes(inputs)), "piece", None)
        return total if known is None else known(total)


def _together(sizes: Sizes, total: int) -> Sizes:
    """Not more than a small batch needs, by powers of two; beyond 32 examples of one chunk by eighths of them."""
    wanted = 1 << max(0, total - 1).bit_length()
    if sizes.group == 1:
        step = wanted // 8 if wanted > _FINER else wanted
        return Sizes(min(sizes.chunk, -(-total // step) * step), 1)
    chunk = min(sizes.chunk, wanted)
    return Sizes(chunk, min(sizes.group, wanted // chunk))


def _in_pieces(evaluate: Callable[[Any, Any], Any], inputs: Any, sizes: Sizes, *, traced: bool) -> Any:
    """A function of pieces ``(group, chunk, ...)`` and their count of chunks, over a batch of any size."""
    (chunk, group), total = sizes, jax.tree.leaves(inputs)[0].shape[0]
    if total == 0:
        one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, 1, *leaf.shape[1:]), leaf.dtype), inputs)
        shapes = jax.eval_shape(evaluate, one, 1)
        return jax.tree.map(lambda s: jnp.zeros((0, *s.shape[1:]), s.dtype), shapes)
    piece = chunk * group
    try:
        return _evaluated(evaluate, inputs, total, chunk, piece, whole=traced)
    except jax.errors.JaxRuntimeError as error:
        smaller = Sizes(half_after(error, chunk, "the prediction"), group)
        return _in_pieces(evaluate, inputs, smaller, traced=traced)


def _evaluated(
    evaluate: Callable[[Any, Any], Any], inputs: Any, total: int, chunk: int, piece: int, *, whole: bool
) -> Any:
    """Piece after piece; ``whole`` for all rounds of a loop, since one whose number is an argument has no reverse."""
    filled = padded(inputs, -total % piece)
    parts = [
        evaluate(
            jax.tree.map(lambda leaf, at=start: _cut(leaf, at, piece, chunk), filled),
            None if whole else -(-min(piece, total - start) // chunk),
        )
        for start in range(0, total, piece)
    ]
    joined = parts[0] if len(parts) == 1 else jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    return jax.tree.map(lambda leaf: leaf if leaf.shape[0] == total else leaf[:total], joined)


def in_turn(evaluate: Callable[[Any], Any], count: Any, group: int) -> Any:
    """The results of the first ``count`` rounds, or of all, joined along their leading axis; the rest stays zero."""
    if group == 1:
        return evaluate(0)
    filled = jax.lax.map(evaluate, jnp.arange(group)) if count is None else _looped(evaluate, count, group)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), filled)


def _looped(evaluate: Callable[[Any], Any], count: Any, group: int) -> Any:
    """The number of rounds is an argument: one program serves batches of every size."""
    empty = jax.tree.map(lambda s: jnp.zeros((group, *s.shape), s.dtype), jax.eval_shape(evaluate, 0))

    def store(i: Any, results: Any) -> Any:
        return jax.tree.map(lambda buffer, new: buffer.at[i].set(new), results, evaluate(i))

    return jax.lax.fori_loop(0, count, store, empty)


def _cut(leaf: Array, start: int, size: int, chunk: int) -> Array:
    # The start is an argument of this small program; a static slice would be compiled anew for each.
    piece = jax.lax.dynamic_slice_in_dim(leaf, start, size)
    return piece.reshape(-1, chunk, *piece.shape[1:])
