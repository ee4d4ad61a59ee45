"""A dense symmetric matrix, kept as its eigendecomposition."""

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
class Dense(Spectral, ShortRepr):
    r"""$V \operatorname{diag}(w) V^\top$ with a square orthogonal $V$."""

    eigenvalues: Float[Array, " P"]
    eigenvectors: Float[Array, "P P"]

    @classmethod
    def from_matrix(cls, matrix: Float[Array, "P P"]) -> Dense:
        """Decompose a symmetric matrix; its skew part, a rounding error, is dropped."""
        return cls(*jnp.linalg.eigh((matrix + matrix.T) / 2))

    @property
    def size(self) -> int:
        """The dimension."""
        return self.eigenvalues.shape[0]

    @property
    def spectrum(self) -> Float[Array, " P"]:
        """The eigenvalues in the order of :meth:`rotate`."""
        return self.eigenvalues

    def with_spectrum(self, values: Float[Array, " P"]) -> Dense:
        """The same eigenvectors with these eigenvalues."""
        return Dense(values, self.eigenvectors)

    @full_precision
    def rotate(self, rows: Float[Array, "*B P"]) -> Float[Array, "*B P"]:
        """Rows in coordinates of the eigenvectors."""
        return rows @ self.eigenvectors

    @full_precision
    def rotate_back(self, rows: Float[Array, "*B P"]) -> Float[Array, "*B P"]:
        """Undo :meth:`rotate`."""
        return rows @ self.eigenvectors.T

    @full_precision
    def matrix(self) -> Float[Array, "P P"]:
        """The matrix itself."""
        return (self.eigenvectors * self.eigenvalues) @ self.eigenvectors.T

    @full_precision
    def mv(self, vector: Float[Array, " P"]) -> Float[Array, " P"]:
        """Product with a vector."""
        return self.eigenvectors @ (self.eigenvalues * (self.eigenvectors.T @ vector))

    def apply(self, function: Callable[[Any], Any]) -> Dense:
        """The same eigenvectors with ``function`` of the eigenvalues."""
        return Dense(function(self.eigenvalues), self.eigenvectors)

    def shift(self, alpha: Any) -> Dense:
        """Add ``alpha`` times the identity."""
        return Dense(self.eigenvalues + alpha, self.eigenvectors)

    def rescale(self, factor: Any) -> Dense:
        """Multiply by a scalar."""
        return Dense(self.eigenvalues * factor, self.eigenvectors)

    def permute(self, positions: Int[Any, " P"]) -> Dense:
        """Rows and columns in another order: entry ``i`` is the former ``positions[i]``."""
        return Dense(self.eigenvalues, self.eigenvectors[positions])

    def permute_rotated(self, rows: Float[Array, "P *B"], positions: Int[Any, " P"]) -> Float[Array, "P *B"]:
        """Coordinates along the eigenvectors in the order that they have after :meth:`permute`: as they were."""
        return rows

    def trace(self) -> Float[Array, ""]:
        """Sum of the eigenvalues."""
        return self.eigenvalues.sum()

    @full_precision
    def entries(self) -> Float[Array, " P"]:
        """The diagonal."""
        return jnp.square(self.eigenvectors) @ self.eigenvalues

    @full_precision
    def quadratic(self, rows: Float[Array, "... C P"]) -> Float[Array, "... C C"]:
        """``rows A rows^T``."""
        inner = rows @ self.eigenvectors
        return (inner * self.eigenvalues) @ jnp.swapaxes(inner, -1, -2)

    def projection(self) -> Projection:
        """Its eigenvectors as columns: rows meet no other."""
        return Projection(None, None, self.eigenvectors, self.eigenvalues)
