"""The GGN over a loader as products with vectors and with blocks of them."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_core import trees
from jax_core.batches import Batch
from jax_core.curvature.data_loader_mv import LoaderPasses
from jax_core.curvature.data_sums import DataSums
from jax_core.curvature.ggn import create_ggn_mv_without_data
from jax_core.footprint import sum_over_chunks
from jax_core.likelihoods import Likelihood
from jax_core.types import ModelFn, Params

_GROUP = 8  # vectors that share a linearisation in one call


class ProductStream:
    r"""$v \mapsto \sum_i J_i^\top H_i J_i\, v$ over a loader, unscaled, batch by batch on the host.

    Attributes:
        sums: What the first pass added up.
    """

    def __init__(self, model_fn: ModelFn, params: Params, likelihood: Likelihood, passes: LoaderPasses) -> None:
        """Bind a model and its loss to a loader.

        Args:
            model_fn: For one example; its bound arrays become arguments of the compiled programs.
            params: Where to linearise.
            likelihood: The loss.
            passes: The data.
        """
        self.model_fn, self.params, self.likelihood, self.passes = model_fn, params, likelihood, passes
        self._flatten, self._unflatten = trees.create_pytree_flattener(params)
        self.sums: DataSums | None = None

    def product(self, vec: Params) -> Params:
        """The product with one vector, a pytree like the parameters."""
        parts = (_product(self.model_fn, self.params, self.likelihood, vec, batch) for batch in self._batches())
        return functools.reduce(trees.add, parts)

    def block(self, rows: Float[Array, "K P"]) -> Float[Array, "K P"]:
        """The products with a block of flat vectors, in one pass over the data."""
        groups = [jax.vmap(self._unflatten)(rows[i : i + _GROUP]) for i in range(0, rows.shape[0], _GROUP)]
        totals: list[Any] = [None] * len(groups)
        for batch in self._batches():
            for i, group in enumerate(groups):
                part = _block_product(self.model_fn, self.params, self.likelihood, group, batch)
                totals[i] = part if totals[i] is None else trees.add(totals[i], part)
        return jnp.concatenate([jax.vmap(self._flatten)(total) for total in totals])

    def _batches(self) -> Any:
        sums = DataSums() if self.sums is None else None
        for number, batch in enumerate(self.passes):
            if sums is not None:
                sums.add(self.model_fn, self.params, self.likelihood, batch, number)
            yield batch
        self.sums = self.sums or sums


@jax.jit
def _product(model_fn: ModelFn, params: Params, likelihood: Likelihood, vec: Params, batch: Batch) -> Params:
    return create_ggn_mv_without_data(model_fn, params, likelihood)(vec, batch)


@jax.jit
def _block_product(model_fn: ModelFn, params: Params, likelihood: Likelihood, block: Params, batch: Batch) -> Params:
    width = jax.tree.leaves(block)[0].shape[0]

    def piece(part: Batch) -> Params:
        outputs, jacobian = jax.linearize(lambda p: jax.vmap(lambda x: model_fn(x, p))(part.input), params)
        transpose = jax.linear_transpose(jacobian, params)

        def one(vec: Params) -> Params:
            return transpose(likelihood.hessian_mv(outputs, part.target, jacobian(vec)))[0]

        return jax.vmap(one)(block)

    return sum_over_chunks(piece, batch, model_fn=model_fn, params=params, width=width)
