"""Operators along a diagonal."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_core.operators.dense import Dense
from jax_core.operators.diagonal import Diagonal
from jax_core.operators.kronecker import Kronecker
from jax_core.operators.projection import Projection
from jax_core.operators.row_blocks import RowBlocks
from jax_core.operators.short_repr import ShortRepr
from jax_core.operators.spectral import Spectral
from jax_core.types import pytree

Block: TypeAlias = Kronecker | Dense | RowBlocks | Diagonal
"""An operator with a full basis of eigenvectors."""


@pytree
@dataclass(frozen=True, repr=False)
class BlockDiagonal(Spectral, ShortRepr):
    """Blocks of consecutive coordinates, each an operator; every verb maps over them."""

    parts: tuple[Block, ...]

    @property
    def size(self) -> int:
        """The dimension."""
        return sum(part.size for part in self.parts)

    @property
    def slices(self) -> tuple[slice, ...]:
        """Where each block lies."""
        ends = list(itertools.accumulate((part.size for part in self.parts), initial=0))
        return tuple(itertools.starmap(slice, itertools.pairwise(ends)))

    @property
    def spectrum(self) -> Float[Array, " P"]:
        """The eigenvalues in the order of :meth:`rotate`."""
        return jnp.concatenate([part.spectrum for part in self.parts])

    def with_spectrum(self, values: Float[Array, " P"]) -> BlockDiagonal:
        """The same eigenvectors with these eigenvalues."""
        return BlockDiagonal(
            tuple(part.with_spectrum(values[s]) for part, s in zip(self.parts, self.slices, strict=True))
        )

    def rotate(self, rows: Float[Array, "*B P"]) -> Float[Array, "*B P"]:
        """Rows in coordinates of the eigenvectors."""
        return self._mapped(rows, lambda part, some: part.rotate(some))

    def rotate_back(self, rows: Float[Array, "*B P"]) -> Float[Array, "*B P"]:
        """Undo :meth:`rotate`."""
        return self._mapped(rows, lambda part, some: part.rotate_back(some))

    def mv(self, vector: Float[Array, " P"]) -> Float[Array, " P"]:
        """Product with a vector."""
        return self._mapped(vector, lambda part, some: part.mv(some))

    def _mapped(self, rows: Array, function: Callable[[Block, Array], Array]) -> Array:
        pairs = zip(self.parts, self.slices, strict=True)
        return jnp.concatenate([function(part, rows[..., s]) for part, s in pairs], axis=-1)

    def apply(self, function: Callable[[Any], Any]) -> BlockDiagonal:
        """The same eigenvectors with ``function`` of the eigenvalues."""
        return BlockDiagonal(tuple(part.apply(function) for part in self.parts))

    def shift(self, alpha: Any) -> BlockDiagonal:
        """Add ``alpha`` times the identity."""
        return BlockDiagonal(tuple(part.shift(alpha) for part in self.parts))

    def rescale(self, factor: Any) -> BlockDiagonal:
        """Multiply by a scalar."""
        return BlockDiagonal(tuple(part.rescale(factor) for part in self.parts))

    def permute(self, positions: Int[Any, " P"]) -> BlockDiagonal:
        """Rows and columns in another order within each block: entry ``i`` is the former ``positions[i]``.

        Raises:
            ValueError: If the order leads out of a block, or mixes the sides of a Kronecker product or a matrix's rows.
        """
        pairs = zip(self.parts, self.within_blocks(positions), strict=True)
        return BlockDiagonal(tuple(part.permute(some) for part, some in pairs))

    def permute_rotated(self, rows: Float[Array, "P *B"], positions: Int[Any, " P"]) -> Float[Array, "P *B"]:
        """Coordinates along the eigenvectors in the order that they have after :meth:`permute`."""
        orders = zip(self.parts, self.slices, self.within_blocks(positions), strict=True)
        return jnp.concatenate([part.permute_rotated(rows[s], some) for part, s, some in orders])

    def within_blocks(self, positions: Int[Any, " P"]) -> list[Int[np.ndarray, " N"]]:
        """An order as one of each block.

        Raises:
            ValueError: If it leads out of a block.
        """
        found = [np.asarray(positions)[s] - s.start for s in self.slices]
        if any(some.size and not (some.min() >= 0 and some.max() < some.size) for some in found):
            raise ValueError("An order of a block diagonal operator's rows stays within its blocks.")
        return found

    def trace(self) -> Float[Array, ""]:
        """Sum of the eigenvalues."""
        return jnp.stack([part.trace() for part in self.parts]).sum()

    def entries(self) -> Float[Array, " P"]:
        """The diagonal."""
        return jnp.concatenate([part.entries() for part in self.parts])

    def quadratic(self, rows: Float[Array, "... C P"]) -> Float[Array, "... C C"]:
        """``rows A rows^T``."""
        pairs = zip(self.parts, self.slices, strict=True)
        forms = [part.quadratic(rows[..., s]) for part, s in pairs]
        return sum(forms[1:], forms[0])

    def projection(self) -> Projection:
        """Its own eigenvectors and eigenvalues."""
        return Projection(self, self.spectrum, None, None)
