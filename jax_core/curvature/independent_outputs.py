"""A likelihood whose curvature over the outputs leaves out how they curve together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_core.likelihoods import Likelihood, Outputs, block_hessians
from jax_core.likelihoods.base import EachOutputAlone
from jax_core.types import pytree


@pytree
@dataclass(frozen=True)
class IndependentOutputs(EachOutputAlone):
    r"""A likelihood with $\operatorname{diag}(H)$ in the place of its Hessian $H$ over a sample's outputs.

    What Gaussian processes on a network's kernel take of a classification (Immer et al., 2021, arXiv:2008.08400, A.2);
    a Gaussian's and a Bernoulli's Hessian is its diagonal.
    """

    likelihood: Likelihood

    def nll(self, outputs: Outputs, target: Any) -> Float[Array, " B"]:
        """That of the likelihood."""
        return self.likelihood.nll(outputs, target)

    def hessian_mv(self, outputs: Outputs, target: Any, vector: Outputs) -> Outputs:
        r"""$\operatorname{diag}(H_i) v_i$."""
        diagonal = jnp.diagonal(block_hessians(self.likelihood, outputs, target), axis1=-2, axis2=-1)
        return diagonal.reshape(vector.shape) * vector

    def sample(self, key: Array, outputs: Outputs) -> Any:
        """That of the likelihood."""
        return self.likelihood.sample(key, outputs)
