"""The Gaussian over weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from jax_core.data.trees import flattener
from jax_core.gradients.subspace import Subspace
from jax_core.operators import Covariance, Operator, Projection, Rooted, Symmetric, whiten
from jax_core.operators.short_repr import ShortRepr
from jax_core.types import Params, pytree


@pytree
@dataclass(frozen=True, repr=False)
class Posterior(ShortRepr):
    r"""$\mathcal N(\theta^*, \Sigma)$ with $\Sigma^{-1} = D^{1/2} (M + I) D^{1/2}$.

    $D$ is the diagonal prior precision and $M = D^{-1/2} G D^{-1/2}$ the curvature in units of the prior. In this form
    log-determinants are sums of $\log(1 + m_i)$, which lose no digits beside $P \log D$.

    Attributes:
        mean: $\theta^*$, a pytree.
        relative_curvature: $M$.
        prior_precision: $D$: a scalar, or a vector over the flattened parameters.
    """

    mean: Params
    relative_curvature: Operator
    prior_precision: Float[Array, " *P"]

    @classmethod
    def create(cls, mean: Params, curvature: Operator, prior_precision: Float[Array, " *P"]) -> Posterior:
        """From the curvature $G$ and the prior precision $D$."""
        return cls(mean, whiten(curvature, jax.lax.rsqrt(prior_precision)), prior_precision)

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.relative_curvature.size

    @property
    def _inverse(self) -> Covariance:
        """$(M + I)^{-1}$; remembered, but within a program, to whose trace it belongs."""
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(self.relative_curvature)):
            return self.relative_curvature.shift(1.0).inverse()
        return self._kept_inverse

    @cached_property
    def _kept_inverse(self) -> Covariance:
        with jax.ensure_compile_time_eval():
            return self.relative_curvature.shift(1.0).inverse()

    def cov_flat(self, vector: Float[Array, " P"]) -> Float[Array, " P"]:
        r"""$\Sigma v$ on flat vectors."""
        root = jax.lax.rsqrt(self.prior_precision)
        return root * self._inverse.mv(root * vector)

    def cov_mv(self, vector: Params) -> Params:
        r"""$\Sigma v$."""
        flatten, unflatten = flattener(self.mean)
        return unflatten(self.cov_flat(flatten(vector)))

    def precision_mv(self, vector: Params) -> Params:
        r"""$\Sigma^{-1} v$."""
        flatten, unflatten = flattener(self.mean)
        return unflatten(self.precision_flat(flatten(vector)))

    def variances(self) -> Float[Array, " P"]:
        r"""The diagonal of $\Sigma$, of the flattened parameters."""
        return self._inverse.entries() / self.prior_precision

    def precisions(self) -> Float[Array, " P"]:
        r"""The diagonal of $\Sigma^{-1}$, of the flattened parameters."""
        return self.prior_precision * self.relative_curvature.shift(1.0).entries()

    def precision_flat(self, vector: Float[Array, " P"]) -> Float[Array, " P"]:
        r"""$\Sigma^{-1} v$ on flat vectors."""
        root = jnp.sqrt(self.prior_precision)
        return root * self.relative_curvature.shift(1.0).mv(root * vector)

    def scale_flat(self, vector: Float[Array, " P"]) -> Float[Array, " P"]:
        r"""$S v$ on flat vectors with $S S^\top = \Sigma$."""
        if isinstance(self.relative_curvature, Symmetric):  # whose inverse is kept by a root
            root = self._inverse
            assert isinstance(root, Rooted)
            turned = root.root_mv(vector)
        else:
            turned = self.relative_curvature.shift(1.0).inverse_root_mv(vector)
        return jax.lax.rsqrt(self.prior_precision) * turned

    def scale_mv(self, vector: Params) -> Params:
        r"""$S v$ with $S S^\top = \Sigma$, $S = D^{-1/2} (M + I)^{-1/2}$ up to a rotation."""
        flatten, unflatten = flattener(self.mean)
        return unflatten(self.scale_flat(flatten(vector)))

    def deviations(self, key: Array, num_samples: int) -> Float[Array, "N P"]:
        """Samples minus the mean, flattened."""
        dtype = self.prior_precision.dtype
        return jax.vmap(self.scale_flat)(jax.random.normal(key, (num_samples, self.size), dtype))

    def sample(self, key: Array, num_samples: int) -> Params:
        """Weights drawn from the posterior: a pytree like the mean, with a leading axis of samples."""
        flatten, unflatten = flattener(self.mean)
        centre = flatten(self.mean)
        return jax.vmap(lambda deviation: unflatten(centre + deviation))(self.deviations(key, num_samples))

    def log_det_ratio(self) -> Float[Array, ""]:
        r"""$\log\det\Sigma^{-1} - \log\det D = \sum_i \log(1 + m_i)$."""
        return self.relative_curvature.log1p_det()

    def logdet(self) -> Float[Array, ""]:
        r"""$\log\det\Sigma^{-1}$, of the precision."""
        return self.log_det_ratio() + jnp.broadcast_to(jnp.log(self.prior_precision), (self.size,)).sum()

    def scatter(self, prior_mean: Any = 0.0) -> Float[Array, ""]:
        r"""$(\theta^* - \mu_0)^\top D\, (\theta^* - \mu_0)$."""
        flat = flattener(self.mean)[0](self.mean) - prior_mean
        return jnp.sum(self.prior_precision * flat**2)

    def output_covariance(self, rows: Float[Array, "... C P"]) -> Float[Array, "... C C"]:
        r"""$J \Sigma J^\top$ for Jacobians given as rows ``(..., C, P)`` over the flattened parameters."""
        return self.output_form(rows)

    @property
    def output_form(self) -> Partial:
        """:meth:`output_covariance` as a function that a program takes as an argument, its inverse made before."""
        return Partial(_quadratic, self._inverse, jax.lax.rsqrt(self.prior_precision))

    @cached_property
    def projection(self) -> Projection:
        r"""$\Sigma$ in the products that $J \Sigma J^\top$ needs."""
        with jax.ensure_compile_time_eval():
            return self._inverse.projection().scale_rows(jax.lax.rsqrt(self.prior_precision))

    @cached_property
    def subspace(self) -> Subspace | None:
        """What Jacobians are multiplied with for :attr:`projection`; ``None`` if its blocks are not the layers."""
        basis = self.projection.basis
        sizes = [jnp.size(leaf) for leaf in jax.tree.leaves(self.mean)]
        return None if basis is not None and [p.size for p in basis.parts] != sizes else Subspace(self.projection)


def _quadratic(inverse: Covariance, root: Array, rows: Array) -> Array:
    if jnp.ndim(root) == 0:  # products with the rows are then shared by all priors of a grid
        return inverse.quadratic(rows) * root**2
    return inverse.quadratic(rows * root)
