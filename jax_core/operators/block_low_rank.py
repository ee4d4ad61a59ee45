"""Blocks with known eigenvectors, and a low rank across all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_core.operators.block_diagonal import Block, BlockDiagonal
from jax_core.operators.projection import Projection
from jax_core.operators.short_repr import ShortRepr
from jax_core.types import pytree
from jax_core.xla.precision import full_precision


@pytree
@dataclass(frozen=True, repr=False)
class BlockLowRank(ShortRepr):
    r"""$Q\,[\operatorname{diag}(d) + U \operatorname{diag}(s) U^\top]\,Q^\top$ with the blocks' eigenvectors $Q$.

    Low rank takes what the layers share, the blocks what is left of each. In the coordinates of $Q$ it is a diagonal
    plus low rank, so inverse and determinant are those of a matrix of the rank's size (Woodbury):
    $A^{-1} = Q\,[\Delta - \Delta U S^{1/2} (I + S^{1/2} U^\top \Delta U S^{1/2})^{-1} S^{1/2} U^\top \Delta]\,Q^\top$,
    $\Delta = \operatorname{diag}(1/d)$.

    Attributes:
        blocks: Eigenvectors $Q$ and the rest $d$.
        U: Columns in coordinates of $Q$; they need not be orthogonal.
        s: Their weights, not negative except in an inverse.
    """

    blocks: BlockDiagonal
    U: Float[Array, "P R"]
    s: Float[Array, " R"]

    @property
    def size(self) -> int:
        """The dimension."""
        return self.U.shape[0]

    @property
    def parts(self) -> tuple[Block, ...]:
        """The blocks one by one."""
        return self.blocks.parts

    @property
    def rank(self) -> int:
        """Columns of ``U``."""
        return self.U.shape[1]

    @full_precision
    def mv(self, vector: Float[Array, " P"]) -> Float[Array, " P"]:
        """Product with a vector."""
        rotated = self.blocks.rotate(vector)
        return self.blocks.rotate_back(self.blocks.spectrum * rotated + self.U @ (self.s * (self.U.T @ rotated)))

    def shift(self, alpha: Any) -> BlockLowRank:
        """Add ``alpha`` times the identity."""
        return BlockLowRank(self.blocks.shift(alpha), self.U, self.s)

    def rescale(self, factor: Any) -> BlockLowRank:
        """Multiply by a scalar."""
        return BlockLowRank(self.blocks.rescale(factor), self.U, self.s * factor)

    def permute(self, positions: Int[Any, " P"]) -> BlockLowRank:
        """Rows and columns in another order within each block, as of :class:`BlockDiagonal`.

        Coordinates along eigenvectors stay, but where the sides of a Kronecker product change places.
        """
        return BlockLowRank(self.blocks.permute(positions), self.blocks.permute_rotated(self.U, positions), self.s)

    def trace(self) -> Float[Array, ""]:
        """Sum of the eigenvalues."""
        return self.blocks.trace() + (jnp.square(self.U).sum(0) * self.s).sum()

    def entries(self) -> Float[Array, " P"]:
        """The diagonal."""
        return self.blocks.entries() + self.s @ jnp.square(self.blocks.rotate_back(self.U.T))

    def quadratic(self, rows: Float[Array, "... C P"]) -> Float[Array, "... C C"]:
        """``rows A rows^T``."""
        return self._form(self.blocks.rotate(rows))

    @full_precision
    def _form(self, rotated: Float[Array, "... C P"]) -> Float[Array, "... C C"]:
        inner = rotated @ self.U
        own = (rotated * self.blocks.spectrum) @ jnp.swapaxes(rotated, -1, -2)
        return own + (inner * self.s) @ jnp.swapaxes(inner, -1, -2)

    @full_precision
    def _small(self, diagonal: Float[Array, " P"]) -> tuple[Float[Array, " R"], Float[Array, "R R"]]:
        r"""Eigenpairs of $S^{1/2} U^\top \operatorname{diag}(d)^{-1} U S^{1/2}$."""
        root = self.U * jnp.sqrt(self.s)
        values, vectors = jnp.linalg.eigh(root.T @ (root / diagonal[:, None]))
        return jnp.maximum(values, 0.0), vectors

    @full_precision
    def inverse(self) -> BlockLowRank:
        """The inverse of a positive definite operator."""
        diagonal = self.blocks.spectrum
        values, vectors = self._small(diagonal)
        columns = (self.U / diagonal[:, None]) @ (jnp.sqrt(self.s)[:, None] * vectors)
        return BlockLowRank(self.blocks.inverse(), columns, -1 / (1 + values))

    @full_precision
    def inverse_root_mv(self, vector: Float[Array, " P"]) -> Float[Array, " P"]:
        r"""$S v$ with $S S^\top = A^{-1}$: $S = Q \Delta^{1/2} (I + W W^\top)^{-1/2}$, $W = \Delta^{1/2} U S^{1/2}$."""
        root = jax.lax.rsqrt(self.blocks.spectrum)
        columns = (self.U * root[:, None]) * jnp.sqrt(self.s)
        values, vectors = self._small(self.blocks.spectrum)
        ratio = jnp.sqrt(1 + values)
        inner = vectors @ ((vectors.T @ (columns.T @ vector)) / (ratio * (1 + ratio)))  # of (1+v)^{-1/2} - 1 over v
        return self.blocks.rotate_back(root * (vector - columns @ inner))

    def logdet(self) -> Float[Array, ""]:
        """Log-determinant of a positive definite operator."""
        return self.blocks.logdet() + jnp.log1p(self._small(self.blocks.spectrum)[0]).sum()

    def log1p_det(self) -> Float[Array, ""]:
        r"""$\log\det(I + A)$."""
        return self.blocks.log1p_det() + jnp.log1p(self._small(1 + self.blocks.spectrum)[0]).sum()

    def projection(self) -> Projection:
        """The blocks' basis, the rest, and the columns."""
        return Projection(self.blocks, self.blocks.spectrum, self.U, self.s)
