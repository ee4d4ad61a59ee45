"""What follows from an operator's functions of its spectrum."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Self = TypeVar("Self", bound="Spectral")


class Spectral:
    """For operators that keep their eigenvectors: every function of the spectrum has the same form."""

    @abstractmethod
    def apply(self: Self, function: Callable[[Any], Any]) -> Self:
        """The same eigenvectors with ``function`` of the eigenvalues."""

    @abstractmethod
    def mv(self, vector: Float[Array, " P"]) -> Float[Array, " P"]:
        """Product with a vector."""

    @abstractmethod
    def trace(self) -> Float[Array, ""]:
        """Sum of the eigenvalues."""

    def inverse(self: Self) -> Self:
        """The inverse of a positive definite operator."""
        return self.apply(lambda w: 1 / w)

    def inverse_root_mv(self, vector: Float[Array, " P"]) -> Float[Array, " P"]:
        r"""$S v$ with $S S^\top = A^{-1}$; here the symmetric $S$."""
        return self.apply(jax.lax.rsqrt).mv(vector)

    def logdet(self) -> Float[Array, ""]:
        """Log-determinant of a positive definite operator."""
        return self.apply(jnp.log).trace()

    def log1p_det(self) -> Float[Array, ""]:
        r"""$\log\det(I + A) = \sum_i \log(1 + w_i)$, to all digits where eigenvalues are small."""
        return self.apply(jnp.log1p).trace()
