r"""Jacobian rows in coordinates of a basis that is known layer by layer, and forms in them.

In the basis $U_B \otimes U_A$ of a matrix a row $\sum_s \bar y_s x_s^\top$ becomes
$\sum_s (U_B^\top \bar y_s)(U_A^\top x_s)^\top$: its factors are rotated, where that is cheaper than turning it whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_core.gradients import tables
from jax_core.gradients.factored import FactoredRows, Layout, Parts, grams
from jax_core.gradients.jacobians import Sides, Worth, by_cost
from jax_core.operators import BlockDiagonal, Dense, Kronecker, Projection, RowBlocks
from jax_core.operators.eigenbasis import Eigenbasis
from jax_core.operators.projection import summed
from jax_core.types import pytree

LeafBasis: TypeAlias = tuple[Array | RowBlocks | None, ...]
"""Of a leaf: ``()`` for its coordinates, ``(V,)``, a basis for each row, or the sides of a Kronecker product.

``None`` is the identity.
"""


@pytree
@dataclass(frozen=True)
class Coordinates:
    """What rows of a layout meet, cut as they are.

    Attributes:
        plain: The bases of leaves that are written out.
        factored: Those of the leaves in factors.
        weights: Of the quadratic form, a number or cut like one vector.
        columns: That rows are multiplied with.
        values: Of the columns in the form.
    """

    plain: tuple[LeafBasis, ...]
    factored: tuple[LeafBasis, ...]
    weights: Float[Array, ""] | Parts | None
    columns: Parts | None
    values: Float[Array, " *R"] | None

    @classmethod
    def of(cls, projection: Projection, layout: Layout) -> Coordinates:
        """A projection, in the order of gradients, cut for a layout."""
        leaves = len(layout.plain) + len(layout.factored)
        bases = _bases(projection.basis) if projection.basis is not None else [()] * leaves
        weights, columns = projection.weights, projection.columns
        if weights is not None and weights.ndim:
            weights = layout.split(weights[None])
        return cls(
            tuple(bases[slot.leaf] for slot in layout.plain),
            tuple(bases[s.leaf][:: -1 if s.is_table else 1] for s in layout.factored),  # cotangents', vectors'
            weights,
            None if columns is None else layout.split(columns.T),
            projection.values,
        )

    def rotate(self, rows: FactoredRows) -> FactoredRows:
        """Rows in these coordinates."""
        plain = self.rotate_plain(rows.plain, rows.layout)
        left, right = self.rotate_left(rows.left), self.rotate_right(rows.right)
        return FactoredRows(plain, left, right, rows.layout)

    def rotate_plain(self, plain: Float[Array, "*B Q"], layout: Layout) -> Float[Array, "*B Q"]:
        """What is written out of rows."""
        if not any(self.plain):
            return plain
        pieces, start = [], 0
        for slot, basis in zip(layout.plain, self.plain, strict=True):
            pieces.append(_rotate_plain(plain[..., start : start + slot.size], basis))
            start += slot.size
        return jnp.concatenate(pieces, axis=-1)

    def rotate_left(self, left: Sequence[Array]) -> tuple[Array, ...]:
        """The cotangents of rows."""
        return tuple(map(partial(_turned, side=0), left, self.factored))

    def rotate_right(self, right: Sequence[Array]) -> tuple[Array, ...]:
        """The vectors of examples, which all their rows share."""
        return tuple(map(partial(_turned, side=1), right, self.factored))

    def form(self, rotated: FactoredRows) -> Float[Array, "B C C"]:
        """The whole quadratic form of rotated rows, example by example."""
        columns, values = self.columns, self.values
        outer = None if columns is None or values is None else rotated.form(columns, values)
        return summed(outer, self.gram(rotated))

    def gram(self, rotated: FactoredRows) -> Float[Array, "B C C"] | None:
        """The quadratic form of rotated rows under the weights, example by example."""
        if self.weights is None:
            return None
        if not isinstance(self.weights, tuple):
            return self.weights * rotated.gram()
        plain, factored = self.weights
        total = grams(rotated.plain * jnp.sqrt(plain[0]))
        slots = rotated.layout.factored
        for slot, left, right, weights in zip(slots, rotated.left, rotated.right, factored, strict=True):
            form = tables.gram if slot.is_table else _weighted_gram
            total = total + form(left, right, weights[:, 0])
        return total


def squares(rotated: FactoredRows) -> Parts:
    """The sum of squares of all rows, coordinate by coordinate, cut like one vector."""
    plain = jnp.square(rotated.plain).sum((0, 1))[None]
    factored = []
    for slot, left, right in zip(rotated.layout.factored, rotated.left, rotated.right, strict=True):
        if slot.is_table:
            total = tables.squares(left, right, slot.width)
        elif right.shape[1] == 1:
            total = jnp.einsum("bco,bi->oi", jnp.square(left[:, :, 0]), jnp.square(right[:, 0]))
        else:
            total = jnp.square(jnp.einsum("bcso,bsi->bcoi", left, right)).sum((0, 1))
        factored.append(total[:, None])
    return plain, tuple(factored)


def worth_rotating(kronecker: tuple[bool, ...] | None) -> Worth:
    """Which leaves stay in factors where rows are rotated: operations of either way, for a row of each output.

    Only those with a Kronecker product for a basis can; in factors each vector and each cotangent is rotated, written
    out each row. Without a basis the choice is :func:`~jax_core.gradients.jacobians.by_cost`.
    """
    if kronecker is None:
        return by_cost

    def worth(leaf: int, sides: Sides) -> bool:
        vectors, outs, width, count, is_table, _ = sides
        if is_table:
            return kronecker[leaf]
        fewer = vectors * (width**2 + count * outs**2) < count * outs * width * (outs + width)
        return kronecker[leaf] and (vectors == 1 or fewer)

    return worth


def kronecker_leaves(basis: BlockDiagonal | Eigenbasis | None) -> tuple[bool, ...] | None:
    """Which leaves have a Kronecker product for a basis."""
    return None if basis is None else tuple(isinstance(part, Kronecker) for part in basis.parts)


def _bases(basis: BlockDiagonal | Eigenbasis) -> list[LeafBasis]:
    found: list[LeafBasis] = []
    for part in basis.parts:
        if isinstance(part, Kronecker):
            found.append((part.left, part.right))
        elif isinstance(part, RowBlocks):
            found.append((part,))
        else:
            found.append((part.eigenvectors,) if isinstance(part, Dense) else ())
    return found


def _rotate_plain(rows: Float[Array, "*B N"], basis: LeafBasis) -> Float[Array, "*B N"]:
    if len(basis) < 2:
        return _turned(rows, basis, 0)
    outs, width = _sides(basis, rows.shape[-1])
    flat = _turned(rows.reshape(-1, width), basis, 1)  # (B * O, I): one product of matrices
    left = basis[0]
    if left is None:
        return flat.reshape(rows.shape)
    turned = jnp.einsum("boi,op->bpi", flat.reshape(-1, outs, width), left)
    return turned.reshape(rows.shape)


def _turned(part: Array, basis: LeafBasis, side: int) -> Array:
    matrix = basis[side] if basis else None
    if isinstance(matrix, RowBlocks):
        return matrix.rotate(part)
    return part if matrix is None else part @ matrix


def _sides(basis: LeafBasis, size: int) -> tuple[int, int]:
    outs, width = (None if side is None or isinstance(side, RowBlocks) else side.shape[0] for side in basis)
    return outs or size // (width or 1), width or size // (outs or 1)


def _weighted_gram(
    left: Float[Array, "B C S O"], right: Float[Array, "B S I"], weights: Float[Array, "O I"]
) -> Float[Array, "B C C"]:
    if right.shape[1] == 1:
        scale = jnp.square(right[:, 0]) @ weights.T  # (B, O)
        single = left[:, :, 0]
        return grams(single * jnp.sqrt(scale)[:, None])
    written = jnp.einsum("bcso,bsi->bcoi", left, right) * jnp.sqrt(weights)
    return grams(written.reshape(*left.shape[:2], -1))
