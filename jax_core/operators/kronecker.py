"""A Kronecker product of two bases with an eigenvalue for each pair of their vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_core.operators.eigenbasis import Eigenbasis
from jax_core.types import pytree
from jax_core.xla.precision import full_precision


@pytree
@dataclass(frozen=True, repr=False)
class Kronecker(Eigenbasis):
    r"""$(L \otimes R) \operatorname{diag}(w) (L \otimes R)^\top$ with orthogonal $L$, $R$, over matrices in C order.

    A product of factors $B \otimes A$ has $w_{ij} = b_i a_j$ (Martens and Grosse, 2015, arXiv:1503.05671); with other
    eigenvalues in the same basis it is the one of EKFAC (George et al., 2018, arXiv:1806.03884). A side that is
    ``None`` is the identity: one whose factor is diagonal, however large.
    """

    left: Float[Array, "M M"] | None
    right: Float[Array, "N N"] | None
    eigenvalues: Float[Array, "M N"]

    @full_precision
    def rotate(self, rows: Float[Array, "*B P"]) -> Float[Array, "*B P"]:
        """Rows in coordinates of the eigenvectors."""
        inner = self._as_matrices(rows)
        inner = inner if self.left is None else self.left.T @ inner
        return (inner if self.right is None else inner @ self.right).reshape(rows.shape)

    @full_precision
    def rotate_back(self, rows: Float[Array, "*B P"]) -> Float[Array, "*B P"]:
        """Undo :meth:`rotate`."""
        inner = self._as_matrices(rows)
        inner = inner if self.left is None else self.left @ inner
        return (inner if self.right is None else inner @ self.right.T).reshape(rows.shape)

    def _as_matrices(self, rows: Array) -> Array:
        return rows.reshape(*rows.shape[:-1], *self.eigenvalues.shape)

    def apply(self, function: Callable[[Any], Any]) -> Kronecker:
        """The same eigenvectors with ``function`` of the eigenvalues."""
        return Kronecker(self.left, self.right, function(self.eigenvalues))

    def permute(self, positions: Int[Any, " P"]) -> Kronecker:
        """Rows and columns in another order: entry ``i`` is the former ``positions[i]``.

        Raises:
            ValueError: If the order mixes the two sides.
        """
        found = self._sides(positions)
        if found is None:
            raise ValueError("This order of a Kronecker product's rows belongs to no Kronecker product.")
        swapped, left, right = found
        values = self._in_order(self.eigenvalues, left, right)
        sides = (
            None if self.left is None else self.left[left],
            None if self.right is None else self.right[right],
        )
        return Kronecker(sides[1], sides[0], values.T) if swapped else Kronecker(*sides, values)

    def _in_order(self, rotated: Float[Array, "M N *B"], left: np.ndarray, right: np.ndarray) -> Array:
        """Coordinates after an order of both sides: along an identity they move with the rows."""
        rotated = rotated[left] if self.left is None else rotated
        return rotated[:, right] if self.right is None else rotated

    def permute_rotated(self, rows: Float[Array, "P *B"], positions: Int[Any, " P"]) -> Float[Array, "P *B"]:
        """Coordinates along the eigenvectors in the order that they have after :meth:`permute`."""
        found = self._sides(positions)
        if found is None or (not found[0] and None not in (self.left, self.right)):
            return rows
        swapped, left, right = found
        moved = self._in_order(rows.reshape(*self.eigenvalues.shape, *rows.shape[1:]), left, right)
        return (jnp.swapaxes(moved, 0, 1) if swapped else moved).reshape(rows.shape)

    def _sides(self, positions: Int[Any, " P"]) -> tuple[bool, np.ndarray, np.ndarray] | None:
        """Whether an order swaps the sides, and the orders of each, if it mixes nothing."""
        m, n = self.eigenvalues.shape
        given = np.asarray(positions)
        left, right = given.reshape(m, n)[:, 0] // n, given.reshape(m, n)[0] % n
        if (given.reshape(m, n) == left[:, None] * n + right).all():
            return False, left, right
        left, right = given.reshape(n, m)[0] // n, given.reshape(n, m)[:, 0] % n
        if (given.reshape(n, m) == left * n + right[:, None]).all():
            return True, left, right
        return None

    @full_precision
    def entries(self) -> Float[Array, " P"]:
        """The diagonal."""
        inner = self.eigenvalues if self.left is None else jnp.square(self.left) @ self.eigenvalues
        return (inner if self.right is None else inner @ jnp.square(self.right).T).reshape(-1)
