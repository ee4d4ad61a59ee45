"""How many samples one evaluation should take: measured rules for XLA's CPU backend, none elsewhere.

Two facts decide. Temporaries of a program above 32 MiB come from freshly mapped pages on every call, and the page
faults cost two to four times the arithmetic; so a batch is walked in chunks whose activations stay below that. And a
convolution inside a compiled loop falls back to a kernel some thirty times slower, while matrix products do not
suffer; so a model with convolution primitives is unrolled, any other is scanned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from jax_core.data import trees
from jax_core.data.batches import Batch, batch_size
from jax_core.types import ModelFn, Params
from jax_core.xla.backend import platform
from jax_core.xla.compiled import as_jit_argument, cached_by_shape

Result = TypeVar("Result")

_TEMPORARIES = 26 * 2**20  # bytes a forward pass writes; the cliff is at 32 MiB, and buffers are reused
_PAST_THE_CLIFF = 8 * 2**30  # the same, for chunks past it: about a quarter of that lives at once
_PARAMETER_TRAFFIC = 18  # times the parameters' bytes: what a chunk costs besides its samples
_MOST_TRAFFIC = 8  # of that, in units of what the samples write
_GROUP = 8  # vectors that share a linearisation
_ROW_BYTES = 24 * 2**20  # a block of gradients, kept below the same cliff
_LONG_ROW_BYTES = 256 * 2**20  # the same where few rows fit: then reading the sketch for each block costs more
_ENOUGH_ROWS = 64  # in a block, to make up for reading the sketch
_MOST_ROWS = 1024  # in a block, since the last one is padded to whole size
_MOST_EXAMPLES = 128  # whose Jacobians meet a block of vectors at once
_UNROLLED_CHUNKS = 16  # compile time grows with each


class ForwardCost(NamedTuple):
    """What one sample's forward pass writes, the parameters' bytes, and whether it runs a convolution primitive."""

    bytes: int
    params: int
    convolves: bool


def _equations(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(tuple(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)  # scans and calls hold their bodies as parameters
            if hasattr(inner, "eqns"):
                yield from _equations(inner)


def forward_cost(model_fn: ModelFn, params: Params, example: Any) -> ForwardCost:
    """What the model's operations write, traced on one example (shapes suffice); remembered by shape."""
    return _forward_cost(as_jit_argument(model_fn), params, example)


@cached_by_shape
def _forward_cost(model_fn: ModelFn, params: Params, example: Any) -> ForwardCost:
    jaxpr = jax.make_jaxpr(lambda model_fn, *given: model_fn(*given))(model_fn, example, params).jaxpr
    written, convolves = 0, False
    for equation in _equations(jaxpr):
        convolves |= equation.primitive.name == "conv_general_dilated"
        written += sum(v.aval.size * v.aval.dtype.itemsize for v in equation.outvars if hasattr(v.aval, "dtype"))
    return ForwardCost(written, trees.get_bytes(params), convolves)


def example_shapes(inputs: Any) -> Any:
    """The shapes of one sample, from inputs of a batch."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), inputs)


def rows_per_block(row_bytes: int) -> int:
    """Gradients that are computed before a sketch takes them up, for a model with gradients of this size."""
    row_bytes = max(1, row_bytes)
    enough = min(_ENOUGH_ROWS, _LONG_ROW_BYTES // row_bytes)
    return max(1, min(_MOST_ROWS, max(_ROW_BYTES // row_bytes, enough)))


def examples_per_block(plain_bytes: int) -> int:
    """Examples whose Jacobians meet a block of vectors at once, each with so many bytes of written-out rows."""
    return max(1, min(_MOST_EXAMPLES, _LONG_ROW_BYTES // max(1, plain_bytes)))


def chunk_size(size: ForwardCost, *, width: int = 1) -> int:
    """Samples, a power of two, whose derivatives stay below the cliff with ``width`` vectors each.

    Every chunk reads and writes all parameters several times over. Where that is most of the work, or one sample is
    past the cliff, chunks are large: of ResNet-18 (64 x 64 pixels) a product costs 45 forward passes one by one, 7 in
    chunks of 16, 5.3 in one of 48.
    """
    each = max(1, size.bytes * width)
    below = _TEMPORARIES // each
    rare = below == 0 or _PARAMETER_TRAFFIC * size.params > below * each * _MOST_TRAFFIC
    return 1 << max(0, (_PAST_THE_CLIFF // each if rare else below).bit_length() - 1)


def group_size(size: ForwardCost) -> int:
    """Vectors that share a linearisation in one call: fewer where so many of one sample's would pass the cliff."""
    return max(1, min(_GROUP, _TEMPORARIES // max(1, size.bytes))) if platform() == "cpu" else _GROUP


def sum_over_chunks(
    function: Callable[[Batch], Result], batch: Batch, *, model_fn: ModelFn, params: Params, width: int = 1
) -> Result:
    """``function`` summed over pieces of a batch; exact for any function that is a sum over samples.

    Args:
        function: From a batch to a pytree of arrays, additive over samples.
        batch: Inputs and targets.
        model_fn: The model whose activations set the size of a piece.
        params: Its parameters.
        width: Vectors that each sample carries at once.
    """
    total = batch_size(batch)
    if platform() != "cpu" or total == 0:
        return function(batch)
    size = forward_cost(model_fn, params, example_shapes(batch.input))
    chunk = chunk_size(size, width=width)
    if size.convolves:
        chunk = max(chunk, -(-total // _UNROLLED_CHUNKS))
    if chunk >= total:
        return function(batch)
    whole = total // chunk
    stacked = jax.tree.map(lambda leaf: leaf[: whole * chunk].reshape(whole, chunk, *leaf.shape[1:]), batch)
    result = _sum_stacked(function, stacked, whole, unroll=size.convolves)
    if whole * chunk < total:
        result = trees.add(result, function(jax.tree.map(lambda leaf: leaf[whole * chunk :], batch)))
    return result


def _sum_stacked(function: Callable[[Batch], Result], stacked: Batch, count: int, *, unroll: bool) -> Result:
    function = jax.jit(function)  # traced once, for its shapes and for the loop

    def take(i: int) -> Batch:
        return jax.tree.map(lambda leaf: leaf[i], stacked)

    if unroll:
        result = function(take(0))
        for i in range(1, count):
            result = trees.add(result, function(take(i)))
        return result
    start = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(function, take(0)))
    return lax.scan(lambda total, piece: (trees.add(total, function(piece)), None), start, stacked)[0]
