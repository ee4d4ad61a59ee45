"""A network linearised on a batch: a value whose residuals can outlive the program that computed them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Array, Float

from jax_core.data import trees
from jax_core.likelihoods import Likelihood
from jax_core.types import Params, pytree


@pytree
@dataclass(frozen=True)
class Linearized:
    """A batch's Jacobian product with the outputs and targets that its loss Hessian needs.

    Attributes:
        jacobian: From ``jax.linearize``: a pytree of residuals that maps a tangent to the outputs' tangent.
        outputs: At the parameters, ``(B, ...)``.
        target: Of the batch.
    """

    jacobian: Callable[[Params], Array]
    outputs: Float[Any, "B *output"]
    target: Any

    def products(self, params: Params, likelihood: Likelihood, vectors: Float[Array, "*K P"]) -> Float[Array, "*K P"]:
        r"""$\sum_i J_i^\top H_i J_i v$ for one flat vector or a block of them. Traceable."""
        flatten, unflatten = trees.flattener(params)
        transpose = jax.linear_transpose(self.jacobian, params)

        def one(vec: Float[Array, " P"]) -> Float[Array, " P"]:
            pushed = self.jacobian(unflatten(vec))
            return flatten(transpose(likelihood.hessian_mv(self.outputs, self.target, pushed))[0])

        return one(vectors) if vectors.ndim == 1 else jax.vmap(one)(vectors)
