"""What a block with a basis of its own, and an eigenvalue for each of its vectors, derives from them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_core.operators.projection import Projection
from jax_core.operators.short_repr import ShortRepr
from jax_core.operators.spectral import Spectral
from jax_core.xla.precision import full_precision

Self = TypeVar("Self", bound="Eigenbasis")


class Eigenbasis(Spectral, ShortRepr):
    r"""For operators $Q \operatorname{diag}(w) Q^\top$ that are one block of a block diagonal one.

    Attributes:
        eigenvalues: $w$, in C order along :meth:`rotate`.
    """

    eigenvalues: Float[Array, "M N"]

    @abstractmethod
    def apply(self: Self, function: Callable[[Any], Any]) -> Self:
        """The same eigenvectors with ``function`` of the eigenvalues."""

    @abstractmethod
    def rotate(self, rows: Float[Array, "*B P"]) -> Float[Array, "*B P"]:
        """Rows in coordinates of the eigenvectors."""

    @abstractmethod
    def rotate_back(self, rows: Float[Array, "*B P"]) -> Float[Array, "*B P"]:
        """Undo :meth:`rotate`."""

    @abstractmethod
    def permute(self: Self, positions: Int[Any, " P"]) -> Self:
        """Rows and columns in another order: entry ``i`` is the former ``positions[i]``."""

    @abstractmethod
    def permute_rotated(self, rows: Float[Array, "P *B"], positions: Int[Any, " P"]) -> Float[Array, "P *B"]:
        """Coordinates along the eigenvectors in the order that they have after :meth:`permute`."""

    @property
    def size(self) -> int:
        """The dimension ``M N``."""
        return self.eigenvalues.shape[0] * self.eigenvalues.shape[1]

    @property
    def spectrum(self) -> Float[Array, " P"]:
        """The eigenvalues in the order of :meth:`rotate`."""
        return self.eigenvalues.reshape(-1)

    @property
    def parts(self: Self) -> tuple[Self, ...]:
        """Itself: the one block of a block diagonal operator."""
        return (self,)

    def with_spectrum(self: Self, values: Float[Array, " P"]) -> Self:
        """The same eigenvectors with these eigenvalues."""
        return self.apply(lambda w: values.reshape(w.shape))

    def mv(self, vector: Float[Array, " P"]) -> Float[Array, " P"]:
        """Product with a vector."""
        return self.rotate_back(self.spectrum * self.rotate(vector))

    def shift(self: Self, alpha: Any) -> Self:
        """Add ``alpha`` times the identity: exact, whatever the basis."""
        return self.apply(lambda w: w + alpha)

    def rescale(self: Self, factor: Any) -> Self:
        """Multiply by a scalar."""
        return self.apply(lambda w: w * factor)

    def trace(self) -> Float[Array, ""]:
        """Sum of the eigenvalues."""
        return self.eigenvalues.sum()

    @full_precision
    def quadratic(self, rows: Float[Array, "... C P"]) -> Float[Array, "... C C"]:
        """``rows A rows^T``."""
        inner = self.rotate(rows)
        return (inner * self.spectrum) @ jnp.swapaxes(inner, -1, -2)

    def projection(self) -> Projection:
        """Its own eigenvectors and eigenvalues."""
        return Projection(self, self.spectrum, None, None)
