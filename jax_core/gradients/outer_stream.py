r"""The whole GGN of dense layers that meet one vector an example, without a row of it written out.

With $J_c = \bar y_c \otimes x$ for each layer, $\sum_n J_n^\top H_n J_n$ has blocks
$\sum_n (\bar Y_n^\top H_n \bar Y_n) \otimes x_n x_n^\top$: one weighted product of the vectors for each pair of
outputs, a $C$-th of the operations of rows. A last layer is the case $\bar Y_n = I$; what is written out (biases) is a
layer whose vector is one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_core.curvature.data_sums import BatchSums, DataSums, evaluate
from jax_core.curvature.fold import fold_batches
from jax_core.curvature.stream import Stream
from jax_core.data.batches import Batch, KnownSizes, batch_size, padded
from jax_core.gradients.factored import Layout
from jax_core.gradients.jacobians import factored_jacobian
from jax_core.gradients.rows import loss_rows
from jax_core.types import ModelFn, Params

_WIDE = 4  # times the outputs: cotangents from which rows are as cheap

Blocks: TypeAlias = tuple[Array, ...]
"""For each pair of layers $a \\le b$ the products ``(pairs of cotangents, I_a, I_b)``."""


def is_outer(layout: Layout, outputs: int) -> bool:
    """Whether this way is open, and cheaper than rows."""
    if not layout.factored:
        return False
    widths = [layout.plain_size, *(slot.outs for slot in layout.factored)]
    return all(slot.vectors == 1 and not slot.is_table for slot in layout.factored) and max(widths) <= _WIDE * outputs


class OuterStream(Stream):
    r"""$\sum_n J_n^\top H_n J_n$ over a loader, unscaled, as a matrix.

    Attributes:
        sums: What the latest pass added up.
    """

    sums: DataSums

    def matrix(self, layout: Layout) -> Float[Array, "P P"]:
        """The matrix, in one pass; the layout is one for which :func:`is_outer` holds."""
        known = KnownSizes()

        def start(batch: Batch) -> Blocks:
            return tuple(
                jnp.zeros((len(_pairs(layout, a, b)[0]), _length(layout, a), _length(layout, b)), dtype)
                for a, b in _layers(layout)
            )

        def step(blocks: Blocks, batch: Batch, add: Callable[[BatchSums], None]) -> Blocks:
            count = batch_size(batch)
            whole = padded(batch, known.fit(count) - count)
            outputs, data = evaluate(self.model_fn, self.params, self.likelihood, whole, jnp.asarray(count))
            add(data)
            hessians = jnp.asarray(_hessians(self.likelihood, outputs, whole.target, count), dtype)
            return _add(self.model_fn, self.params, whole.input, hessians, blocks, layout=layout)

        dtype = jnp.result_type(*jax.tree.leaves(self.params))
        blocks, self.sums = fold_batches(self.passes, start, step, label="Curvature", checkpoint=self._checkpoint)
        return _assembled(blocks, layout)


def _hessians(likelihood: Any, outputs: Array, target: Any, count: int) -> Float[np.ndarray, "B C C"]:
    """The loss Hessians of a batch, zero from the sample ``count`` on.

    Raises:
        ValueError: If one has a negative eigenvalue beyond rounding.
    """
    sample, cotangents = loss_rows(likelihood, outputs, target, 0.0, count)
    flat = cotangents.written().reshape(len(cotangents), -1)
    found = np.zeros((outputs.shape[0], flat.shape[1], flat.shape[1]), flat.dtype)
    np.add.at(found, sample, flat[:, :, None] * flat[:, None, :])
    return found


@partial(jax.jit, static_argnames="layout", donate_argnames="blocks")
def _add(model_fn: ModelFn, params: Params, inputs: Any, hessians: Array, blocks: Blocks, *, layout: Layout) -> Blocks:
    _, rows = factored_jacobian(model_fn, params, inputs, layout)
    ones = jnp.ones((rows.plain.shape[0], 1), rows.plain.dtype)
    left = [rows.plain, *(part[:, :, 0] for part in rows.left)]  # (B, C, O)
    right = [ones, *(part[:, 0] for part in rows.right)]  # (B, I)

    def product(a: int, b: int) -> Array:
        weights = jnp.einsum("bco,bcd,bdp->opb", left[a], hessians, left[b])
        first, second = _pairs(layout, a, b)
        chosen = weights[first, second]  # (pairs, B)
        scaled = chosen[:, None, :] * right[a].T  # (pairs, I_a, B)
        count, length, batch = scaled.shape
        return (scaled.reshape(count * length, batch) @ right[b]).reshape(count, length, right[b].shape[1])

    return tuple(block + product(a, b) for block, (a, b) in zip(blocks, _layers(layout), strict=True))


def _layers(layout: Layout) -> list[tuple[int, int]]:
    """Pairs of layers, the first one being all that is written out."""
    count = 1 + len(layout.factored)
    return [(a, b) for a in range(count) for b in range(a, count)]


def _width(layout: Layout, layer: int) -> int:
    return layout.plain_size if layer == 0 else layout.factored[layer - 1].shape[0]


def _length(layout: Layout, layer: int) -> int:
    return 1 if layer == 0 else layout.factored[layer - 1].size // _width(layout, layer)


def _pairs(layout: Layout, a: int, b: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of cotangents of two layers; of one with itself the upper triangle."""
    if a == b:
        return np.triu_indices(_width(layout, a))
    first, second = np.indices((_width(layout, a), _width(layout, b)))
    return first.ravel(), second.ravel()


def _assembled(blocks: Blocks, layout: Layout) -> Float[Array, "P P"]:
    """The matrix from its blocks, in the order of the parameters."""
    slots = [layout.plain, *((slot,) for slot in layout.factored)]
    places = [np.concatenate([np.arange(s.start, s.start + s.size) for s in of] or [np.zeros(0, int)]) for of in slots]
    matrix = np.zeros((layout.size, layout.size), blocks[0].dtype)  # on the host: in place, a block at a time
    for block, (a, b) in zip(map(np.asarray, blocks), _layers(layout), strict=True):
        first = places[a].reshape(_width(layout, a), _length(layout, a))
        second = places[b].reshape(_width(layout, b), _length(layout, b))
        for part, o, p in zip(block, *_pairs(layout, a, b), strict=True):
            matrix[np.ix_(first[o], second[p])] = part
            matrix[np.ix_(second[p], first[o])] = part.T
    return jnp.asarray(matrix)
