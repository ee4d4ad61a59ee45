"""GGN products from linearisations that are kept in memory: for methods that go over the same data many times."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_core.curvature.data_sums import BatchSums, DataSums
from jax_core.curvature.linearization import Linearized
from jax_core.curvature.product_stream import in_groups
from jax_core.data.batches import Batch, pieces
from jax_core.data.passes import LoaderPasses
from jax_core.data.trees import get_bytes, on_device_of
from jax_core.likelihoods import Likelihood
from jax_core.types import ModelFn, Params
from jax_core.xla.backend import platform
from jax_core.xla.chunks import chunk_size, example_shapes, forward_cost

# Residuals are about a fifth of what a forward pass writes: pieces may be larger than a whole product's.
_PIECE = 2


class KeptProducts:
    r"""$v \mapsto \sum_i J_i^\top H_i J_i\, v$ with each batch linearised once, at about half the cost a product.

    Attributes:
        sums: What the pass over the data added up.
    """

    def __init__(self, model_fn: ModelFn, params: Params, likelihood: Likelihood, passes: LoaderPasses) -> None:
        """Linearise over a loader, in one pass; see :func:`residual_bytes` for what that takes.

        Args:
            model_fn: For one example; its bound arrays become arguments of the compiled programs.
            params: Where to linearise.
            likelihood: The loss.
            passes: The data.
        """
        self.params, self.likelihood, self.sums = params, likelihood, DataSums()
        self._kept: list[Linearized] = []
        for number, batch in enumerate(passes):
            self._size = forward_cost(model_fn, params, example_shapes(batch.input))
            for part in pieces(batch, _piece_size(model_fn, params, batch)):
                linear, data = _linearize(model_fn, params, likelihood, part)
                self.sums.add(data, number)
                self._kept.append(linear)

    def product(self, vec: Float[Array, "*K P"]) -> Float[Array, "*K P"]:
        """The product with one flat vector, or with a group of them."""
        vec = on_device_of(self.params, vec)
        total = jnp.zeros_like(vec)
        for linear in self._kept:
            total = _add(self.params, self.likelihood, linear, vec, total)
        return total

    def block(self, rows: Float[Array, "K P"]) -> Float[Array, "K P"]:
        """The products with a block of flat vectors."""
        return jnp.concatenate([self.product(group) for group in in_groups(rows, self._size)])


def residual_bytes(model_fn: ModelFn, params: Params, likelihood: Likelihood, batch: Batch) -> float:
    """Memory that one sample's linearisation keeps, from shapes alone."""
    size = min(_piece_size(model_fn, params, batch), jax.tree.leaves(batch.input)[0].shape[0])
    part = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype), batch)
    linear, _ = jax.eval_shape(_linearize, model_fn, params, likelihood, part)
    return get_bytes(linear) / size


def _piece_size(model_fn: ModelFn, params: Params, batch: Batch) -> int:
    if platform() != "cpu":
        return jax.tree.leaves(batch.input)[0].shape[0]
    return _PIECE * chunk_size(forward_cost(model_fn, params, example_shapes(batch.input)))


@jax.jit
def _linearize(model_fn: ModelFn, params: Params, likelihood: Likelihood, batch: Batch) -> tuple[Linearized, BatchSums]:
    outputs, jacobian = jax.linearize(lambda p: jax.vmap(lambda x: model_fn(x, p))(batch.input), params)
    return Linearized(jacobian, outputs, batch.target), BatchSums.of(likelihood, outputs, batch.target)


@jax.jit
def _add(
    params: Any,
    likelihood: Likelihood,
    linear: Linearized,
    vectors: Float[Array, "*K P"],
    total: Float[Array, "*K P"],
) -> Float[Array, "*K P"]:
    return total + linear.products(params, likelihood, vectors)
