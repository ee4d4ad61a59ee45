"""The GGN over a loader as products with vectors and with blocks of them."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_core.curvature.data_sums import BatchSums, DataSums
from jax_core.curvature.fold import fold_batches
from jax_core.curvature.linearization import Linearized
from jax_core.curvature.stream import Stream
from jax_core.data.batches import Batch
from jax_core.data.trees import on_device_of
from jax_core.likelihoods import Likelihood
from jax_core.types import ModelFn, Params
from jax_core.xla.chunks import ForwardCost, example_shapes, forward_cost, group_size, sum_over_chunks


class ProductStream(Stream):
    r"""$v \mapsto \sum_i J_i^\top H_i J_i\, v$ over a loader, unscaled, batch by batch on the host.

    Attributes:
        sums: What the first pass added up.
    """

    sums: DataSums | None = None

    def product(self, vec: Float[Array, " P"]) -> Float[Array, " P"]:
        """The product with one flat vector, in one pass over the data."""
        return self._pass(vec)[0]

    def block(self, rows: Float[Array, "K P"]) -> Float[Array, "K P"]:
        """The products with a block of flat vectors, in one pass over the data."""
        return jnp.concatenate(self._pass(rows))

    def _pass(self, vectors: Float[Array, "*K P"]) -> list[Array]:
        """The products with a vector, or with groups of them; the first pass also adds up the data."""
        vectors = on_device_of(self.params, vectors)
        groups: list[Array] = []

        def start(batch: Batch) -> list[Array]:
            groups.extend(self._groups(vectors, batch))
            return [jnp.zeros_like(group) for group in groups]

        def step(totals: list[Array], batch: Batch, add: Callable[[BatchSums], None]) -> list[Array]:
            for i, group in enumerate(groups):
                totals[i], data = _add(self.model_fn, self.params, self.likelihood, group, batch, totals[i])
                if self.sums is None and i == 0:
                    add(data)
            return totals

        # a single vector comes from a loop that has a bar of its own
        label = None if vectors.ndim == 1 else "Curvature"
        totals, sums = fold_batches(self.passes, start, step, label=label, checkpoint=self._checkpoint)
        self.sums = self.sums or sums
        return totals

    def _groups(self, vectors: Float[Array, "*K P"], batch: Batch) -> list[Array]:
        if vectors.ndim == 1:
            return [vectors]
        return in_groups(vectors, forward_cost(self.model_fn, self.params, example_shapes(batch.input)))


def in_groups(rows: Float[Array, "K P"], size: ForwardCost) -> list[Float[Array, "G P"]]:
    """A block of vectors as groups that share a linearisation in one call."""
    group = group_size(size)
    return [rows[i : i + group] for i in range(0, rows.shape[0], group)]


@jax.jit
def _add(
    model_fn: ModelFn,
    params: Params,
    likelihood: Likelihood,
    vectors: Float[Array, "*K P"],
    batch: Batch,
    total: Float[Array, "*K P"],
) -> tuple[Float[Array, "*K P"], BatchSums]:
    """The running total with a batch's products added, and what else its forward pass tells."""

    def piece(part: Batch) -> tuple[Float[Array, "*K P"], BatchSums]:
        outputs, jacobian = jax.linearize(lambda p: jax.vmap(lambda x: model_fn(x, p))(part.input), params)
        linear = Linearized(jacobian, outputs, part.target)
        return linear.products(params, likelihood, vectors), BatchSums.of(likelihood, outputs, part.target)

    width = vectors.size // vectors.shape[-1]
    products, data = sum_over_chunks(piece, batch, model_fn=model_fn, params=params, width=width)
    return total + products, data
