"""The GGN over a loader as products with blocks of vectors, through the Jacobian of each example."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_core.curvature.data_sums import BatchSums, DataSums
from jax_core.curvature.fold import fold_batches
from jax_core.curvature.stream import Stream
from jax_core.data.batches import Batch, KnownSizes, batch_size, evenly, padded, pieces
from jax_core.data.trees import on_device_of
from jax_core.gradients.factored import Layout, Parts
from jax_core.gradients.jacobians import factored_jacobian, find_layout
from jax_core.likelihoods import Likelihood
from jax_core.types import ModelFn, Params
from jax_core.xla.backend import platform
from jax_core.xla.chunks import example_shapes, examples_per_block, forward_cost
from jax_core.xla.compiled import cached_by_shape

_CHUNK_BYTES = 24 * 2**20  # of activations and plain rows together, below the cliff of xla/chunks.py


class JacobianStream(Stream):
    r"""$V \mapsto \sum_i J_i^\top H_i J_i V$ over a loader, unscaled, with some layers in factors.

    Where one example's Jacobian is cheap (few outputs, dense layers) a block of vectors meets it in matrix products,
    in place of a pass through the network for each vector.

    Attributes:
        sums: What the first pass added up.
    """

    sums: DataSums | None = None

    def block(self, rows: Float[Array, "K P"]) -> Float[Array, "K P"]:
        """The products with a block of flat vectors, in one pass over the data."""
        rows, known = on_device_of(self.params, rows), KnownSizes()
        model = (self.model_fn, self.params, self.likelihood)
        layout = find_layout(self.model_fn, self.params, example_shapes(self.passes.peek().input))
        parts = layout.split(rows)

        def step(image: Parts, batch: Batch, add: Callable[[BatchSums], None]) -> Parts:
            sizes = plan_jacobians(self.model_fn, self.params, batch, layout=layout)
            width = evenly(batch_size(batch), sizes.block)
            total = known.fit(width)
            chunk = evenly(total, sizes.chunk)
            total += -total % chunk
            for piece in pieces(batch, width):
                count = batch_size(piece)
                whole = padded(piece, total - count)
                image, data = _add(*model, parts, whole, jnp.asarray(count), image, layout=layout, chunk=chunk)
                add(data)
            return image

        def start(batch: Batch) -> Parts:
            return jax.tree.map(jnp.zeros_like, parts)

        image, sums = fold_batches(self.passes, start, step, label="Curvature", checkpoint=self._checkpoint)
        self.sums = self.sums or sums
        return layout.join(image)


class JacobianPlan(NamedTuple):
    """Examples that meet the vectors at once, so that those are read seldom, and per evaluation of the network."""

    block: int
    chunk: int


@cached_by_shape
def plan_jacobians(model_fn: ModelFn, params: Params, batch: Batch, *, layout: Layout) -> JacobianPlan:
    """Sizes that bound the memory that the rows of a block take, and keep a chunk's in reach of the caches."""
    outputs = jax.eval_shape(model_fn, example_shapes(batch.input), params).size
    block = examples_per_block(4 * outputs * layout.row_size)
    size = forward_cost(model_fn, params, example_shapes(batch.input))
    # A convolution primitive must not sit in a compiled loop.
    if platform() != "cpu" or size.convolves:
        return JacobianPlan(block, block)
    # Reverse mode walks back through the activations once per output.
    fitting = _CHUNK_BYTES // max(1, outputs * (size.bytes + 4 * layout.row_size))
    return JacobianPlan(block, max(1, min(block, fitting)))


@partial(jax.jit, static_argnames=("layout", "chunk"), donate_argnames="image")
def _add(
    model_fn: ModelFn,
    params: Params,
    likelihood: Likelihood,
    vectors: Parts,
    batch: Batch,
    count: Array,
    image: Parts,
    *,
    layout: Layout,
    chunk: int,
) -> tuple[Parts, BatchSums]:
    """The image with the products of the first ``count`` examples added, and what else their outputs tell."""
    total = batch_size(batch)
    split = jax.tree.map(lambda leaf: leaf.reshape(-1, chunk, *leaf.shape[1:]), batch.input)
    mapped = jax.lax.map(lambda inputs: factored_jacobian(model_fn, params, inputs, layout), split)
    flat, rows = jax.tree.map(lambda leaf: leaf.reshape(total, *leaf.shape[2:]), mapped)
    shape = jax.eval_shape(model_fn, example_shapes(batch.input), params).shape
    outputs = flat.reshape(total, *shape)
    counted = jnp.arange(total) < count

    def hessian(pushed: Float[Array, "B C"]) -> Float[Array, "B C"]:
        return likelihood.hessian_mv(outputs, batch.target, pushed.reshape(outputs.shape)).reshape(flat.shape)

    weights = jax.vmap(hessian, in_axes=-1, out_axes=-1)(rows.times_rows(vectors))
    weights = jnp.where(counted[:, None, None], weights, 0.0)
    return rows.add_back(image, weights), BatchSums.of(likelihood, outputs, batch.target, count)
