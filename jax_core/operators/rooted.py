"""A covariance by a root of it."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_core.operators.projection import Projection
from jax_core.operators.short_repr import ShortRepr
from jax_core.types import pytree
from jax_core.xla.precision import full_precision


@pytree
@dataclass(frozen=True, repr=False)
class Rooted(ShortRepr):
    r"""$S S^\top$ with a square $S$ that need be neither symmetric nor orthogonal: the inverse of a factored matrix."""

    root: Float[Array, "P P"]

    @property
    def size(self) -> int:
        """The dimension."""
        return self.root.shape[0]

    @full_precision
    def root_mv(self, vector: Float[Array, " P"]) -> Float[Array, " P"]:
        """$S v$."""
        return self.root @ vector

    @full_precision
    def mv(self, vector: Float[Array, " P"]) -> Float[Array, " P"]:
        """Product with a vector."""
        return self.root @ (vector @ self.root)

    def entries(self) -> Float[Array, " P"]:
        """The diagonal."""
        return jnp.square(self.root).sum(1)

    @full_precision
    def quadratic(self, rows: Float[Array, "... C P"]) -> Float[Array, "... C C"]:
        """``rows A rows^T``."""
        inner = rows @ self.root
        return inner @ jnp.swapaxes(inner, -1, -2)

    def projection(self) -> Projection:
        """The root's columns."""
        return Projection(None, None, self.root, jnp.ones((), self.root.dtype))
