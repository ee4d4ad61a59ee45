r"""Jacobian rows that stay factored where a weight matrix meets few vectors per example.

For $y_s = W x_s$ the gradient of any scalar behind it is the sum of outer products $\sum_s \bar y_s x_s^\top$. Kept as
its factors, the rows of a dense layer (one vector) need no $C P$ numbers per example, and their products with vectors
cost the operations of one row per *vector* where written-out rows cost those of one row per output (compare the
structured derivatives of Novak et al., 2022, arXiv:2206.08720). A convolution over a small map is the same with a
vector per position.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_core.gradients import tables
from jax_core.operators.projection import between
from jax_core.types import pytree
from jax_core.xla.products import times_rows


class Slot(NamedTuple):
    """A parameter leaf: where it lies in the flattened parameters, and its shape, ``(out, *in)`` of a factored one.

    A table, whose rows are looked up, has the shape ``(in, out)`` (see :mod:`jax_core.gradients.tables`).
    """

    leaf: int
    start: int
    shape: tuple[int, ...]
    vectors: int = 1
    """Of a factored leaf: how many vectors of an example it multiplies."""
    is_table: bool = False

    @property
    def size(self) -> int:
        """Elements of the leaf."""
        return math.prod(self.shape)

    @property
    def outs(self) -> int:
        """Of a factored leaf: numbers of a cotangent."""
        return self.shape[1 if self.is_table else 0]

    @property
    def width(self) -> int:
        """Of a factored leaf: numbers of a vector."""
        return self.size // max(self.outs, 1)

    @property
    def is_written(self) -> bool:
        """Of a factored leaf: whether :meth:`FactoredRows.written` multiplies it out."""
        return self.vectors > 1 and not self.is_table

    @property
    def part(self) -> slice:
        """Its place in the flattened parameters."""
        return slice(self.start, self.start + self.size)


Parts: TypeAlias = tuple[Array, tuple[Array, ...]]
"""Vectors ``(K, P)`` cut by leaves: ``(K, Q)`` over those written out, ``(O, K, I)`` for each factored one.

Of a table, whose shape is ``(in, out)``, it is ``(I, K, O)``.
"""


@dataclass(frozen=True)
class Layout:
    """Which leaves of the parameters are written out, ``Q`` numbers together, and which are factored."""

    plain: tuple[Slot, ...]
    factored: tuple[Slot, ...]

    @property
    def plain_size(self) -> int:
        """``Q``."""
        return sum(slot.size for slot in self.plain)

    @property
    def row_size(self) -> int:
        """Numbers that a row takes: those written out, and the cotangents of factored leaves."""
        return self.plain_size + sum(slot.vectors * slot.outs for slot in self.factored)

    @property
    def written_size(self) -> int:
        """Numbers of a row whose factors are multiplied out where a matrix meets several vectors."""
        return self.plain_size + sum(s.size if s.is_written else s.vectors * s.outs for s in self.factored)

    @property
    def written(self) -> Layout:
        """The layout of :meth:`FactoredRows.written`."""
        several = [Slot(slot.leaf, slot.start, slot.shape) for slot in self.factored if slot.is_written]
        return Layout((*self.plain, *several), tuple(slot for slot in self.factored if not slot.is_written))

    @property
    def factored_size(self) -> int:
        """Elements of the factored leaves, each counted for every vector that its matrix multiplies."""
        return sum(slot.vectors * slot.size for slot in self.factored)

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.plain_size + sum(slot.size for slot in self.factored)

    @partial(jax.jit, static_argnums=0)
    def split(self, rows: Float[Array, "K P"]) -> Parts:
        """Cut vectors by leaves, once for many products: a slice inside a product is a copy."""
        plain = jnp.concatenate([rows[:, s.part] for s in self.plain] or [rows[:, :0]], axis=1)
        return plain, tuple(rows[:, s.part].reshape(len(rows), s.shape[0], -1).swapaxes(0, 1) for s in self.factored)

    @partial(jax.jit, static_argnums=0)
    def join(self, parts: Parts) -> Float[Array, "K P"]:
        """Undo :meth:`split`."""
        plain, factored = parts
        pieces, start = {}, 0
        for slot in self.plain:
            pieces[slot.start] = plain[:, start : start + slot.size]
            start += slot.size
        for slot, part in zip(self.factored, factored, strict=True):
            pieces[slot.start] = part.swapaxes(0, 1).reshape(-1, slot.size)
        return jnp.concatenate([pieces[start] for start in sorted(pieces)] or [plain], axis=1)


@pytree
@dataclass(frozen=True)
class FactoredRows:
    r"""Jacobians ``(B, C, P)`` of a batch: written out for some leaves, $\sum_s \bar y_{cs} x_s^\top$ for the others.

    The products are spelled for XLA's CPU backend, where an ``einsum`` over three-dimensional weights copies them into
    another order of axes at more than the cost of the product.

    Attributes:
        plain: Rows over the leaves that are written out.
        left: For each factored leaf the cotangents $\bar y$ of its products.
        right: For each factored leaf the vectors $x$ that it multiplies, of tables the rows ``(..., S)`` that it picks.
        layout: Which leaf is which.
    """

    plain: Float[Array, "... C Q"]
    left: tuple[Float[Array, "... C _S _O"], ...]
    right: tuple[Float[Array, "... _S _I"] | Int[Array, "... _S"], ...]
    layout: Layout = field(metadata={"static": True})

    def _each(self, *more: Sequence[Array]) -> Iterator[Any]:
        """The factored leaves with their two factors, and what else there is of each."""
        return zip(self.layout.factored, self.left, self.right, *more, strict=True)

    def written(self) -> FactoredRows:
        """The same with factors multiplied out where a matrix meets several vectors: for rows that meet many."""
        pieces, left, right = [self.plain], [], []
        for slot, own, met in zip(self.layout.factored, self.left, self.right, strict=True):
            if not slot.is_written:
                left.append(own)
                right.append(met)
            else:
                outer = jnp.einsum("bcso,bsi->bcoi", own, met)
                pieces.append(outer.reshape(*outer.shape[:2], -1))
        return FactoredRows(jnp.concatenate(pieces, axis=-1), tuple(left), tuple(right), self.layout.written)

    def times_rows(self, parts: Parts) -> Float[Array, "B C K"]:
        """``J rows^T`` for vectors cut by :meth:`Layout.split`."""
        plain, factored = parts
        total = self.plain @ plain.T
        for slot, left, right, stored in self._each(factored):
            if slot.is_table:
                total = total + tables.times_rows(left, right, stored)
                continue
            (batch, outputs, positions, outs), (_, vectors, width) = left.shape, stored.shape
            pushed = times_rows(right.reshape(-1, width), stored.reshape(-1, width))  # (B * S, O * K)
            flat = left.reshape(batch, outputs, positions * outs)
            total = total + flat @ pushed.reshape(batch, positions * outs, vectors)
        return total

    def form(self, parts: Parts, values: Float[Array, " *K"]) -> Float[Array, "B C C"]:
        """``J rows^T diag(values) rows J^T`` for vectors cut by :meth:`Layout.split`."""
        if self._is_one_layer:
            return self._form_of_one_layer(parts, values)
        inner = self.times_rows(parts)
        return between(inner, values, inner)

    @property
    def _is_one_layer(self) -> bool:
        """Whether one matrix meets one vector, and little lies beside it: no more cotangents than outputs, about."""
        slots, outputs, beside = self.layout.factored, *self.plain.shape[-2:]
        if len(slots) != 1 or slots[0].is_table or slots[0].vectors > 1:
            return False
        return slots[0].outs * (slots[0].outs + beside) <= 2 * outputs**2  # operations with one of the vectors

    def _form_of_one_layer(self, parts: Parts, values: Float[Array, " *K"]) -> Float[Array, "B C C"]:
        """The form of the layer's own outputs first, which its cotangents and the rows beside it then meet.

        Of a last layer cotangents are a unit matrix, and the rows beside it those of its bias: products with the many
        vectors of an exact posterior would only copy them.
        """
        plain, (stored,) = parts
        left, right = self.left[0][:, :, 0], self.right[0][:, 0]
        (batch, _, outs), (_, vectors, width) = left.shape, stored.shape
        pushed = times_rows(right, stored.reshape(-1, width)).reshape(batch, outs, vectors)
        across = between(pushed.reshape(-1, vectors), values, plain.T).reshape(batch, outs, -1)
        beside = jnp.broadcast_to(between(plain.T, values, plain.T), (batch, *2 * plain.shape[1:]))
        above = jnp.concatenate([between(pushed, values, pushed), across], axis=-1)
        below = jnp.concatenate([jnp.swapaxes(across, -1, -2), beside], axis=-1)
        rows = jnp.concatenate([left, self.plain], axis=-1)
        return rows @ jnp.concatenate([above, below], axis=-2) @ jnp.swapaxes(rows, -1, -2)

    def add_back(self, image: Parts, weights: Float[Array, "B C K"]) -> Parts:
        r"""``image`` with $\sum_{bc} w_{bck} J_{bc}$ added to its vectors."""
        plain, factored = image
        plain = plain + jnp.einsum("bck,bcq->kq", weights, self.plain)
        added = []
        for slot, left, right, part in self._each(factored):
            if slot.is_table:
                added.append(tables.add_back(left, right, part, weights))
                continue
            rows = right.reshape(-1, right.shape[-1])  # (B * S, I)
            mixed = jnp.einsum("bcso,bck->bsok", left, weights).reshape(len(rows), -1)
            added.append(part + (mixed.T @ rows).reshape(part.shape))
        return plain, tuple(added)

    def gram(self) -> Float[Array, "B C C"]:
        r"""$J J^\top$ of each example."""
        total = grams(self.plain)
        for slot, left, right in self._each():
            if slot.is_table:
                total = total + tables.gram(left, right, jnp.ones(slot.shape, left.dtype))
                continue
            mixed = jnp.einsum("bsi,bti,bcto->bcso", right, right, left)
            flat = left.reshape(*left.shape[:2], -1)
            total = total + mixed.reshape(flat.shape) @ jnp.swapaxes(flat, -1, -2)
        return total

    def dense(self) -> Float[Array, "B C P"]:
        """All rows written out."""
        batch, outputs = self.plain.shape[:2]
        outer = [
            tables.written(left, right, slot.width) if slot.is_table else jnp.einsum("bcso,bsi->bcoi", left, right)
            for slot, left, right in self._each()
        ]
        factored = tuple(o.reshape(-1, *o.shape[2:]).swapaxes(0, 1) for o in outer)
        parts = (self.plain.reshape(batch * outputs, -1), factored)
        return self.layout.join(parts).reshape(batch, outputs, -1)


def grams(rows: Float[Array, "*B C Q"]) -> Float[Array, "*B C C"]:
    """``rows @ rows^T`` of each example."""
    return rows @ jnp.swapaxes(rows, -1, -2)
