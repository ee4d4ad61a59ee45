"""A quadratic form in the few products that it needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_core.operators.short_repr import ShortRepr
from jax_core.types import pytree

if TYPE_CHECKING:
    from jax_core.operators.block_diagonal import BlockDiagonal
    from jax_core.operators.eigenbasis import Eigenbasis


@pytree
@dataclass(frozen=True, repr=False)
class Projection(ShortRepr):
    r"""$A = Q\,[\operatorname{diag}(w) + U \operatorname{diag}(s) U^\top]\,Q^\top$, whose forms need no $P \times P$.

    With rows $R$ and $\tilde R = R Q$, the form $R A R^\top$ is $\tilde R \operatorname{diag}(w) \tilde R^\top$ and
    $(\tilde R U) \operatorname{diag}(s) (\tilde R U)^\top$. The columns need not be orthogonal, nor $s$ positive.

    Attributes:
        basis: An operator with the eigenvectors $Q$; ``None`` for the identity.
        weights: $w$, a number or one per row of $Q^\top$; ``None`` for zero.
        columns: $U$; ``None`` for none.
        values: $s$, a number where all are equal.
    """

    basis: BlockDiagonal | Eigenbasis | None
    weights: Float[Array, " *P"] | None
    columns: Float[Array, "P R"] | None
    values: Float[Array, " *R"] | None

    def scale_rows(self, root: Float[Array, " *P"]) -> Projection:
        """The projection of ``diag(root) A diag(root)``, for ``root`` constant on each block of the basis."""
        if jnp.ndim(root) == 0:
            weights = None if self.weights is None else self.weights * root**2
            return Projection(self.basis, weights, self.columns, None if self.values is None else self.values * root**2)
        weights = None if self.weights is None else self.weights * root**2
        columns = None if self.columns is None else self.columns * root[:, None]
        return Projection(self.basis, weights, columns, self.values)

    def permute(self, positions: Int[Any, " P"]) -> Projection:
        """The projection of the operator with its rows and columns in another order, as of its basis."""
        if self.basis is None:
            weights = self.weights if self.weights is None or jnp.ndim(self.weights) == 0 else self.weights[positions]
            columns = None if self.columns is None else self.columns[positions]
            return Projection(None, weights, columns, self.values)
        assert self.weights is not None  # a basis without weights would have no use
        basis = self.basis.with_spectrum(jnp.broadcast_to(self.weights, (self.basis.size,))).permute(positions)
        columns = None if self.columns is None else self.basis.permute_rotated(self.columns, positions)
        return Projection(basis, basis.spectrum, columns, self.values)


def combine(
    values: Float[Array, " *R"] | None, inner: Float[Array, "... C R"] | None, gram: Float[Array, "... C C"] | None
) -> Float[Array, "... C C"]:
    r"""The form from a projection's $s$, $\tilde R U$ and $\tilde R \operatorname{diag}(w) \tilde R^\top$."""
    return summed(None if inner is None or values is None else between(inner, values, inner), gram)


def summed(outer: Float[Array, "... C C"] | None, gram: Float[Array, "... C C"] | None) -> Float[Array, "... C C"]:
    """The form from what its columns give and what its weights give."""
    if outer is None:
        assert gram is not None  # a projection has weights or columns
        return gram
    return outer if gram is None else outer + gram


def between(
    left: Float[Array, "... C R"], values: Float[Array, " *R"], right: Float[Array, "... D R"]
) -> Float[Array, "... C D"]:
    r"""$A \operatorname{diag}(s) B^\top$; a number multiplies the product, which is small, in the place of a factor."""
    across = jnp.swapaxes(right, -1, -2)
    return (left @ across) * values if values.ndim == 0 else (left * values) @ across
