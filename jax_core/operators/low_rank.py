"""Identity plus low rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_core.operators.projection import Projection
from jax_core.operators.short_repr import ShortRepr
from jax_core.operators.spectral import Spectral
from jax_core.types import pytree
from jax_core.xla.precision import full_precision


@pytree
@dataclass(frozen=True, repr=False)
class LowRank(Spectral, ShortRepr):
    r"""$U \operatorname{diag}(s) U^\top + \alpha I$ with $U^\top U = I$.

    The eigenvalues are $s + \alpha$ on the columns of $U$ and $\alpha$ on their complement, so every function of the
    operator has the same form.

    Example:
        >>> A = LowRank(jnp.eye(3)[:, :1], jnp.array([3.0]), jnp.array(1.0))
        >>> A.mv(jnp.ones(3)).tolist()
        [4.0, 1.0, 1.0]
        >>> A.apply(jnp.sqrt).mv(jnp.ones(3)).tolist()
        [2.0, 1.0, 1.0]
    """

    U: Float[Array, "P R"]
    s: Float[Array, " R"]
    alpha: Float[Array, ""]

    @property
    def size(self) -> int:
        """The dimension."""
        return self.U.shape[0]

    @property
    def rank(self) -> int:
        """Columns of ``U``."""
        return self.U.shape[1]

    @full_precision
    def mv(self, vector: Float[Array, " P"]) -> Float[Array, " P"]:
        """Product with a vector."""
        return self.U @ (self.s * (self.U.T @ vector)) + self.alpha * vector

    def apply(self, function: Callable[[Any], Any]) -> LowRank:
        """The same eigenvectors with ``function`` of the eigenvalues."""
        rest = function(self.alpha)
        return LowRank(self.U, function(self.s + self.alpha) - rest, rest)

    def shift(self, alpha: Any) -> LowRank:
        """Add ``alpha`` times the identity."""
        return LowRank(self.U, self.s, self.alpha + alpha)

    def rescale(self, factor: Any) -> LowRank:
        """Multiply by a scalar."""
        return LowRank(self.U, self.s * factor, self.alpha * factor)

    def permute(self, positions: Int[Any, " P"]) -> LowRank:
        """Rows and columns in another order: entry ``i`` is the former ``positions[i]``."""
        return LowRank(self.U[positions], self.s, self.alpha)

    def trace(self) -> Float[Array, ""]:
        """Sum of the eigenvalues."""
        return self.s.sum() + self.alpha * self.size

    def entries(self) -> Float[Array, " P"]:
        """The diagonal."""
        return jnp.square(self.U) @ self.s + self.alpha

    @full_precision
    def quadratic(self, rows: Float[Array, "... C P"]) -> Float[Array, "... C C"]:
        """``rows A rows^T``."""
        inner = rows @ self.U
        return (inner * self.s) @ jnp.swapaxes(inner, -1, -2) + self.alpha * (rows @ jnp.swapaxes(rows, -1, -2))

    def projection(self) -> Projection:
        """Its columns, and the same weight for all else."""
        return Projection(None, self.alpha, self.U, self.s)
