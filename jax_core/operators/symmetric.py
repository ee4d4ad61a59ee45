"""A symmetric matrix that is kept as it is, and factored only for what is asked of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_core.operators.dense import Dense
from jax_core.operators.projection import Projection
from jax_core.operators.rooted import Rooted
from jax_core.operators.short_repr import ShortRepr
from jax_core.types import pytree
from jax_core.xla.precision import full_precision

_LEFT = 0.9  # of alpha, in every pivot of a factor: below, rounding has eaten too much of it


@pytree
@dataclass(frozen=True, repr=False)
class Symmetric(ShortRepr):
    r"""$c M + \alpha I$ with a positive semi-definite $M$.

    Inverse and determinant take a Cholesky factor, which costs a tenth of the eigenpairs. Those are computed where a
    whole family of $c$ and $\alpha$ is searched, once, and kept for all operators of the same $M$.

    Rounding leaves a singular $M$ with eigenvalues a little below zero, which count as zero. Beside a larger $\alpha$
    they do not show. Where a pivot of the factor, of which none is smaller than $\alpha$ in exact arithmetic, is less
    than nine tenths of it, $\alpha$ is lost in the rounding of $c M$, and the eigenpairs take the factor's place.

    Attributes:
        base: $M$; its skew part, a rounding error, is ignored.
        scale: $c \ge 0$.
        alpha: $\alpha$.
    """

    base: Float[Array, "P P"]
    scale: Float[Array, ""]
    alpha: Float[Array, ""]
    _eigenpairs: list[Dense] = field(default_factory=list, repr=False, compare=False, metadata={"dropped": True})

    @classmethod
    def from_matrix(cls, matrix: Float[Array, "P P"]) -> Symmetric:
        """A matrix as it is."""
        return cls(matrix, jnp.ones((), matrix.dtype), jnp.zeros((), matrix.dtype))

    @property
    def size(self) -> int:
        """The dimension."""
        return self.base.shape[0]

    @property
    def eigenpairs(self) -> Dense:
        """The same operator as its eigenpairs; remembered, but within a program, to whose trace they belong."""
        if isinstance(self.base, jax.core.Tracer):
            found = _decomposed(self.base)
        else:
            if not self._eigenpairs:
                with jax.ensure_compile_time_eval():
                    self._eigenpairs.append(_decomposed(self.base))
            found = self._eigenpairs[0]
        return found.rescale(self.scale).shift(self.alpha)

    @property
    def eigenvalues(self) -> Float[Array, " P"]:
        """Ascending."""
        return self.eigenpairs.eigenvalues

    def matrix(self) -> Float[Array, "P P"]:
        """The matrix itself."""
        return _whole(self.base, self.scale, self.alpha)

    @full_precision
    def mv(self, vector: Float[Array, " P"]) -> Float[Array, " P"]:
        """Product with a vector."""
        return self.scale * (self.base @ vector) + self.alpha * vector

    def apply(self, function: Callable[[Any], Any]) -> Dense:
        """The same eigenvectors with ``function`` of the eigenvalues."""
        return self.eigenpairs.apply(function)

    def shift(self, alpha: Any) -> Symmetric:
        """Add ``alpha`` times the identity."""
        return Symmetric(self.base, self.scale, self.alpha + alpha, self._eigenpairs)

    def rescale(self, factor: Any) -> Symmetric:
        """Multiply by a scalar."""
        return Symmetric(self.base, self.scale * factor, self.alpha * factor, self._eigenpairs)

    def permute(self, positions: Int[Any, " P"]) -> Symmetric:
        """Rows and columns in another order: entry ``i`` is the former ``positions[i]``."""
        return Symmetric(self.base[positions][:, positions], self.scale, self.alpha)

    def trace(self) -> Float[Array, ""]:
        """Sum of the eigenvalues."""
        return self.scale * jnp.trace(self.base) + self.alpha * self.size

    def entries(self) -> Float[Array, " P"]:
        """The diagonal."""
        return self.scale * jnp.diagonal(self.base) + self.alpha

    @full_precision
    def quadratic(self, rows: Float[Array, "... C P"]) -> Float[Array, "... C C"]:
        """``rows A rows^T``."""
        across = jnp.swapaxes(rows, -1, -2)
        return self.scale * ((rows @ self.base) @ across) + self.alpha * (rows @ across)

    def inverse(self) -> Rooted:
        r"""The inverse of a positive definite operator, by its root $L^{-\top}$ with $L L^\top = A$."""
        if self._eigenpairs:
            known = self.eigenpairs
            return Rooted(known.eigenvectors * jax.lax.rsqrt(known.eigenvalues))
        return Rooted(_inverse_root(self.base, self.scale, self.alpha))

    def inverse_root_mv(self, vector: Float[Array, " P"]) -> Float[Array, " P"]:
        r"""$S v$ with $S S^\top = A^{-1}$."""
        return self.inverse().root_mv(vector)

    def logdet(self) -> Float[Array, ""]:
        """Log-determinant of a positive definite operator."""
        return self.eigenpairs.logdet() if self._eigenpairs else _logdet(self.base, self.scale, self.alpha)

    def log1p_det(self) -> Float[Array, ""]:
        r"""$\log\det(I + A)$, to all digits where eigenvalues are small."""
        return self.eigenpairs.log1p_det() if self._eigenpairs else _log1p_det(self.base, self.scale, self.alpha)

    def projection(self) -> Projection:
        """Its eigenvectors as columns."""
        return self.eigenpairs.projection()


@jax.jit
@full_precision
def _decomposed(base: Array) -> Dense:
    return Dense.from_matrix(base).apply(lambda w: jnp.maximum(w, 0.0))


def _whole(base: Array, scale: Array, alpha: Array) -> Array:
    return scale * base + alpha * jnp.eye(base.shape[0], dtype=base.dtype)


def _factor(base: Array, scale: Array, alpha: Array) -> tuple[Array, Array]:
    """The Cholesky factor, and whether it is one: it is not a number where a pivot is negative."""
    factor = jnp.linalg.cholesky(_whole(base, scale, alpha))
    return factor, jnp.square(jnp.diagonal(factor)).min() >= _LEFT * alpha


@jax.jit
@full_precision
def _inverse_root(base: Array, scale: Array, alpha: Array) -> Float[Array, "P P"]:
    factor, is_sound = _factor(base, scale, alpha)

    def triangular() -> Array:
        return jax.scipy.linalg.solve_triangular(factor, jnp.eye(base.shape[0], dtype=base.dtype), lower=True).T

    def spectral() -> Array:
        known = _decomposed(base)
        return known.eigenvectors * jax.lax.rsqrt(known.eigenvalues * scale + alpha)

    return jax.lax.cond(is_sound, triangular, spectral)


@jax.jit
@full_precision
def _logdet(base: Array, scale: Array, alpha: Array) -> Float[Array, ""]:
    factor, is_sound = _factor(base, scale, alpha)

    def triangular() -> Array:
        return 2 * jnp.log(jnp.diagonal(factor)).sum()

    def spectral() -> Array:
        return jnp.log(_decomposed(base).eigenvalues * scale + alpha).sum()

    return jax.lax.cond(is_sound, triangular, spectral)


@jax.jit
@full_precision
def _log1p_det(base: Array, scale: Array, alpha: Array) -> Float[Array, ""]:
    size, eps = base.shape[0], float(jnp.finfo(base.dtype).eps)
    trace = scale * jnp.trace(base) + alpha * size

    def series() -> Array:
        # tr A - tr A^2 / 2 is short of tr A^3 / 3 at most, where a factor of I + A errs by eps in each pivot
        squares = jnp.square(_whole(base, scale, alpha)).sum()
        return trace - squares / 2

    return jax.lax.cond(trace**3 < 3 * eps * size, series, lambda: _logdet(base, scale, alpha + 1))
