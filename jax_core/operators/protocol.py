"""The few verbs every operator speaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Self = TypeVar("Self", bound="Operator")


@runtime_checkable
class Operator(Protocol):
    """A symmetric positive semi-definite matrix, known by its spectrum."""

    @property
    def size(self) -> int:
        """The dimension ``P``."""
        ...

    def mv(self, vector: Float[Array, " P"]) -> Float[Array, " P"]:
        """Product with a vector."""
        ...

    def apply(self: Self, function: Callable[[Any], Any]) -> Self:
        """The same eigenvectors with ``function`` of the eigenvalues."""
        ...

    def shift(self: Self, alpha: Any) -> Self:
        """The operator plus ``alpha`` times the identity."""
        ...

    def rescale(self: Self, factor: Any) -> Self:
        """The operator times a scalar."""
        ...

    def permute(self: Self, positions: Int[Any, " P"]) -> Self:
        """Rows and columns in another order: entry ``i`` is the former ``positions[i]``."""
        ...

    def trace(self) -> Float[Array, ""]:
        """Sum of the eigenvalues."""
        ...

    def quadratic(self, rows: Float[Array, "... C P"]) -> Float[Array, "... C C"]:
        """``rows A rows^T``."""
        ...


def logdet(operator: Operator) -> Float[Array, ""]:
    """Log-determinant of a positive definite operator."""
    return operator.apply(jnp.log).trace()
