"""A diagonal matrix."""

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
class Diagonal(Spectral, ShortRepr):
    r"""$\operatorname{diag}(d)$."""

    diagonal: Float[Array, " P"]

    @property
    def size(self) -> int:
        """The dimension."""
        return self.diagonal.shape[0]

    @property
    def spectrum(self) -> Float[Array, " P"]:
        """The entries, which are the eigenvalues."""
        return self.diagonal

    def with_spectrum(self, values: Float[Array, " P"]) -> Diagonal:
        """The same eigenvectors with these eigenvalues."""
        return Diagonal(values)

    def rotate(self, rows: Float[Array, "*B P"]) -> Float[Array, "*B P"]:
        """The rows themselves: the eigenvectors are the coordinates."""
        return rows

    def rotate_back(self, rows: Float[Array, "*B P"]) -> Float[Array, "*B P"]:
        """The rows themselves."""
        return rows

    def mv(self, vector: Float[Array, " P"]) -> Float[Array, " P"]:
        """Product with a vector."""
        return self.diagonal * vector

    def apply(self, function: Callable[[Any], Any]) -> Diagonal:
        """``function`` of the entries, which are the eigenvalues."""
        return Diagonal(function(self.diagonal))

    def shift(self, alpha: Any) -> Diagonal:
        """Add ``alpha`` times the identity."""
        return Diagonal(self.diagonal + alpha)

    def rescale(self, factor: Any) -> Diagonal:
        """Multiply by a scalar."""
        return Diagonal(self.diagonal * factor)

    def permute(self, positions: Int[Any, " P"]) -> Diagonal:
        """Rows and columns in another order: entry ``i`` is the former ``positions[i]``."""
        return Diagonal(self.diagonal[positions])

    def permute_rotated(self, rows: Float[Array, "P *B"], positions: Int[Any, " P"]) -> Float[Array, "P *B"]:
        """Coordinates along the eigenvectors in the order that they have after :meth:`permute`."""
        return rows[positions]

    def trace(self) -> Float[Array, ""]:
        """Sum of the entries."""
        return self.diagonal.sum()

    def entries(self) -> Float[Array, " P"]:
        """The diagonal."""
        return self.diagonal

    @full_precision
    def quadratic(self, rows: Float[Array, "... C P"]) -> Float[Array, "... C C"]:
        """``rows A rows^T``."""
        return (rows * self.diagonal) @ jnp.swapaxes(rows, -1, -2)

    def projection(self) -> Projection:
        """Its entries as weights."""
        return Projection(None, self.diagonal, None, None)
