"""The few verbs every operator speaks."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar, runtime_checkable

from jaxtyping import Array, Float, Int

from jax_core.operators.projection import Projection

Self = TypeVar("Self", bound="Operator")


@runtime_checkable
class Covariance(Protocol):
    """A symmetric positive semi-definite matrix with known products, an inverse of an operator for instance."""

    @property
    def size(self) -> int:
        """The dimension ``P``."""
        ...

    def mv(self, vector: Float[Array, " P"]) -> Float[Array, " P"]:
        """Product with a vector."""
        ...

    def entries(self) -> Float[Array, " P"]:
        """The diagonal."""
        ...

    def quadratic(self, rows: Float[Array, "... C P"]) -> Float[Array, "... C C"]:
        """``rows A rows^T``."""
        ...

    def projection(self) -> Projection:
        """What rows have to be multiplied with for :meth:`quadratic`."""
        ...


@runtime_checkable
class Operator(Covariance, Protocol):
    """A symmetric positive semi-definite matrix with a known inverse and determinant."""

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

    def inverse(self) -> Covariance:
        """The inverse, of a positive definite operator."""
        ...

    def inverse_root_mv(self, vector: Float[Array, " P"]) -> Float[Array, " P"]:
        r"""$S v$ with $S S^\top = A^{-1}$."""
        ...

    def logdet(self) -> Float[Array, ""]:
        """Log-determinant, of a positive definite operator."""
        ...

    def log1p_det(self) -> Float[Array, ""]:
        r"""$\log\det(I + A)$."""
        ...


def logdet(operator: Operator) -> Float[Array, ""]:
    """Log-determinant of a positive definite operator."""
    return operator.logdet()
