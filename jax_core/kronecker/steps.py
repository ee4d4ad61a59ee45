"""What a pass does with the rows of examples; each is known by its value, and so are its programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from jax_core.gradients.factored import FactoredRows, Layout, Parts, Slot
from jax_core.gradients.rotated import Coordinates, squares
from jax_core.kronecker.layers import Layers

KfacApprox: TypeAlias = Literal["expand", "reduce"]
"""What the positions that share a matrix are to its factors: samples of their own, or one together."""

Sides: TypeAlias = tuple[list[Array], list[Array]]
"""Sums of cotangents in the order of leaves, and of vectors in that of the factored ones."""


@dataclass(frozen=True)
class AddFactors:
    r"""$\sum_s \bar y_s \bar y_s^\top$ and $\sum_s x_s x_s^\top$ of each matrix, else a block or a diagonal.

    Reduced, an example has one of each: the sum of its cotangents, and the mean of its vectors. Of a table's vectors
    the sum is diagonal, the numbers of times that each row is looked up.
    """

    layers: Layers
    approximation: KfacApprox = "expand"

    @property
    def layout(self) -> Layout:
        """Matrices in factors."""
        return self.layers.layout

    def start(self, dtype: Any) -> Sides:
        """Zeros."""
        outs = {slot.leaf: slot.outs for slot in self.layout.factored}
        left = [
            jnp.zeros((outs[s.leaf],) * 2 if s.leaf in outs else self._written(s), dtype) for s in self.layers.slots
        ]
        return left, [jnp.zeros((s.width,) if s.is_table else (s.width, s.width), dtype) for s in self.layout.factored]

    def _written(self, slot: Slot) -> tuple[int, ...]:
        """The shape of what is kept of a leaf that is no matrix."""
        if self.layers.is_dense(slot):
            return slot.size, slot.size
        rows = self.layers.rows(slot)
        return (slot.size,) if rows is None else (rows.number, rows.width, rows.width)

    def share(self, carry: Sides, extra: None, right: list[Array], counted: Bool[Array, " B"]) -> tuple[Sides, None]:
        """The vectors' share, which counts each example once, whatever its rows."""
        lefts, grams = carry
        added = []
        for slot, total, part in zip(self.layout.factored, grams, right, strict=True):
            if slot.is_table:
                share = jnp.broadcast_to(counted[:, None], part.shape).astype(total.dtype)
                added.append(total.at[part].add(share, mode="drop"))
                continue
            part = part.mean(1, keepdims=True) if self.is_reduced(slot) else part
            flat = jnp.where(counted[:, None, None], part, 0.0).reshape(-1, part.shape[-1])
            added.append(total + flat.T @ flat)
        return (lefts, added), None

    def count(self, slot: Slot) -> int:
        """Vectors of a factored leaf in an example's share."""
        return 1 if self.is_reduced(slot) else slot.vectors

    def is_reduced(self, slot: Slot) -> bool:
        """Whether an example has one cotangent and one vector; a table's factor would be no diagonal then."""
        return self.approximation == "reduce" and not slot.is_table

    def add(self, carry: Sides, extra: None, shared: None, plain: Array, left: list[Array]) -> Sides:
        """The cotangents' share."""
        lefts, grams = carry
        added, start = {}, 0
        for slot in self.layout.plain:
            own = plain[:, start : start + slot.size]
            rows = self.layers.rows(slot)
            if self.layers.is_dense(slot):
                added[slot.leaf] = own.T @ own
            elif rows is None:
                added[slot.leaf] = jnp.square(own).sum(0)
            else:
                added[slot.leaf] = jnp.einsum("bgi,bgj->gij", rows.cut(own), rows.cut(own))
            start += slot.size
        for slot, part in zip(self.layout.factored, left, strict=True):
            own = part.sum(1) if self.is_reduced(slot) else part.reshape(-1, part.shape[-1])
            added[slot.leaf] = own.T @ own
        return [total + added[leaf] for leaf, total in enumerate(lefts)], grams


@dataclass(frozen=True)
class AddRotated:
    """In rotated coordinates, the products with a block of vectors, and the diagonal.

    Attributes:
        layout: How rows are rotated.
        meets: Whether there are vectors. Rows that meet them are written out before, where a matrix has several inputs.
    """

    layout: Layout
    meets: bool

    @property
    def cut(self) -> Layout:
        """How products and diagonal are cut."""
        return self.layout.written if self.meets else self.layout

    def share(
        self, carry: Any, extra: tuple[Coordinates, Parts | None], right: list[Array], counted: Array
    ) -> tuple[Any, tuple[Array, ...]]:
        """The vectors turned."""
        return carry, extra[0].rotate_right(right)

    def add(
        self,
        carry: tuple[Parts | None, Parts],
        extra: tuple[Coordinates, Parts | None],
        shared: tuple[Array, ...],
        plain: Array,
        left: list[Array],
    ) -> tuple[Parts | None, Parts]:
        """The rows' share of both."""
        (image, diagonal), (coordinates, vectors) = carry, extra
        cotangents = tuple(part[:, None] for part in coordinates.rotate_left(left))  # (B, 1, S, O)
        turned = FactoredRows(coordinates.rotate_plain(plain, self.layout)[:, None], cotangents, shared, self.layout)
        turned = turned.written() if self.meets else turned
        diagonal = jax.tree.map(jnp.add, diagonal, squares(turned))
        if image is None or vectors is None:
            return image, diagonal
        return turned.add_back(image, turned.times_rows(vectors)), diagonal
