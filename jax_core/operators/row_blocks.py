"""Dense blocks of one size, one for each row of a matrix, kept as their eigendecompositions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_core.operators.eigenbasis import Eigenbasis
from jax_core.types import pytree
from jax_core.xla.precision import full_precision


@pytree
@dataclass(frozen=True, repr=False)
class RowBlocks(Eigenbasis):
    r"""$V_g \operatorname{diag}(w_g) V_g^\top$ along the diagonal, for $g = 1$ to $G$.

    The coordinates are a matrix in C order, ``(G, N)``, and block $g$ is that of its row $g$: of a grouped
    convolution's kernel, all that makes one output channel. ``across`` they are ``(N, G)``, and a block is a column's.

    Attributes:
        eigenvalues: $w$; :meth:`rotate` gives them in C order, block after block.
        eigenvectors: $V$.
        across: Whether blocks are of columns.
    """

    eigenvalues: Float[Array, "G N"]
    eigenvectors: Float[Array, "G N N"]
    across: bool = field(default=False, metadata={"static": True})

    @classmethod
    def from_matrices(cls, matrices: Float[Array, "G N N"], *, across: bool = False) -> RowBlocks:
        """Decompose symmetric matrices; their skew parts, rounding errors, are dropped."""
        values, vectors = jnp.linalg.eigh((matrices + jnp.swapaxes(matrices, 1, 2)) / 2)
        return cls(values, vectors, across)

    @full_precision
    def matrices(self) -> Float[Array, "G N N"]:
        """The blocks themselves."""
        return (self.eigenvectors * self.eigenvalues[:, None]) @ jnp.swapaxes(self.eigenvectors, 1, 2)

    @full_precision
    def rotate(self, rows: Float[Array, "*B P"]) -> Float[Array, "*B P"]:
        """Rows in coordinates of the eigenvectors."""
        apart = cut(rows, *self.eigenvalues.shape, across=self.across)
        return jnp.einsum("...gi,gij->...gj", apart, self.eigenvectors).reshape(rows.shape)

    @full_precision
    def rotate_back(self, rows: Float[Array, "*B P"]) -> Float[Array, "*B P"]:
        """Undo :meth:`rotate`."""
        apart = cut(rows, *self.eigenvalues.shape, across=False)
        return self._joined(jnp.einsum("...gj,gij->...gi", apart, self.eigenvectors))

    def _joined(self, apart: Float[Array, "*B G N"]) -> Float[Array, "*B P"]:
        """Undo :func:`cut`."""
        placed = jnp.swapaxes(apart, -1, -2) if self.across else apart
        return placed.reshape(*apart.shape[:-2], self.size)

    def apply(self, function: Callable[[Any], Any]) -> RowBlocks:
        """The same eigenvectors with ``function`` of the eigenvalues."""
        return RowBlocks(function(self.eigenvalues), self.eigenvectors, self.across)

    def permute(self, positions: Int[Any, " P"]) -> RowBlocks:
        """Rows and columns in another order: entry ``i`` is the former ``positions[i]``.

        Raises:
            ValueError: If the order breaks blocks apart.
        """
        block, within, across = self._moved(positions)
        vectors = jnp.take_along_axis(self.eigenvectors[block], jnp.asarray(within)[:, :, None], 1)
        return RowBlocks(self.eigenvalues[block], vectors, across)

    def permute_rotated(self, rows: Float[Array, "P *B"], positions: Int[Any, " P"]) -> Float[Array, "P *B"]:
        """Coordinates along the eigenvectors in the order that they have after :meth:`permute`: block by block."""
        apart = rows.reshape(*self.eigenvalues.shape, *rows.shape[1:])
        return apart[self._moved(positions)[0]].reshape(rows.shape)

    def _moved(self, positions: Int[Any, " P"]) -> tuple[np.ndarray, np.ndarray, bool]:
        """The former block of each, where its coordinates lay in that, and whether blocks are of columns then."""
        count, width = self.eigenvalues.shape
        given = np.asarray(positions)
        block, within = (given % count, given // count) if self.across else (given // width, given % width)
        for across in (self.across, not self.across):
            blocks, places = (cut(some, count, width, across=across) for some in (block, within))
            if (blocks == blocks[:, :1]).all():
                return blocks[:, 0], places, across
        raise ValueError("This order of a matrix's entries keeps neither its rows nor its columns together.")

    @full_precision
    def entries(self) -> Float[Array, " P"]:
        """The diagonal."""
        return self._joined(jnp.einsum("gij,gj->gi", jnp.square(self.eigenvectors), self.eigenvalues))


def cut(rows: Any, count: int, width: int, *, across: bool) -> Any:
    """Rows ``(..., P)`` over a matrix in C order as ``(..., G, N)``, its rows, or ``across`` its columns."""
    shape = (width, count) if across else (count, width)
    apart = rows.reshape(*rows.shape[:-1], *shape)
    return apart.swapaxes(-1, -2) if across else apart
