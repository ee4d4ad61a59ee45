r"""Jacobian rows that stay factored where a weight matrix meets one vector per example.

For $y = W x$ the gradient of any scalar behind it is the outer product $\bar y x^\top$. Kept as its two factors, the
rows of a dense layer need no $C P$ numbers per example, and their products with vectors cost the operations of one
row per *example* where written-out rows cost those of one row per example and output (compare the structured
derivatives of Novak et al., 2022, arXiv:2206.08720).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Slot(NamedTuple):
    """A parameter leaf: where it lies in the flattened parameters, and how it is stored."""

    leaf: int
    start: int
    shape: tuple[int, ...]
    out_first: bool = True
    """Of a factored leaf: whether it is stored as ``(out, in)``, as in torch, or as ``(in, out)``, as in flax."""

    @property
    def size(self) -> int:
        """Elements of the leaf."""
        return math.prod(self.shape)

    @property
    def part(self) -> slice:
        """Its place in the flattened parameters."""
        return slice(self.start, self.start + self.size)


Parts: TypeAlias = tuple[Array, tuple[Array, ...]]
"""Vectors ``(K, P)`` cut by leaves: ``(K, Q)`` over those written out, and ``(K, *shape)`` for each factored one."""


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
    def size(self) -> int:
        """Number of parameters."""
        return self.plain_size + sum(slot.size for slot in self.factored)

    def split(self, rows: Float[Array, "K P"]) -> Parts:
        """Cut vectors by leaves, once for many products: a slice inside a product is a copy."""
        plain = jnp.concatenate([rows[:, s.part] for s in self.plain] or [rows[:, :0]], axis=1)
        return plain, tuple(rows[:, s.part].reshape(-1, *s.shape) for s in self.factored)

    def join(self, parts: Parts) -> Float[Array, "K P"]:
        """Undo :meth:`split`."""
        plain, factored = parts
        pieces, start = {}, 0
        for slot in self.plain:
            pieces[slot.start] = plain[:, start : start + slot.size]
            start += slot.size
        for slot, part in zip(self.factored, factored, strict=True):
            pieces[slot.start] = part.reshape(-1, slot.size)
        return jnp.concatenate([pieces[start] for start in sorted(pieces)] or [plain], axis=1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FactoredRows:
    r"""Jacobians ``(B, C, P)`` of a batch: written out for some leaves, $\bar y_c x^\top$ for the others.

    The products are spelled for XLA's CPU backend, where an ``einsum`` over three-dimensional weights copies them into
    another order of axes at more than the cost of the product.

    Attributes:
        plain: Rows over the leaves that are written out.
        left: For each factored leaf the cotangents $\bar y$ of its product.
        right: For each factored leaf the vector $x$ that it multiplies.
        layout: Which leaf is which.
    """

    plain: Float[Array, "B C Q"]
    left: tuple[Float[Array, "B C O"], ...]
    right: tuple[Float[Array, "B I"], ...]
    layout: Layout = field(metadata={"static": True})

    def times_rows(self, parts: Parts) -> Float[Array, "B C K"]:
        """``J rows^T`` for vectors cut by :meth:`Layout.split`."""
        plain, factored = parts
        total = self.plain @ plain.T
        for left, right, slot, stored in zip(self.left, self.right, self.layout.factored, factored, strict=True):
            if slot.out_first:
                pushed = stored.reshape(-1, slot.shape[1]) @ right.T  # (K * O, B)
                total = total + jnp.einsum("bco,kob->bck", left, pushed.reshape(-1, slot.shape[0], len(right)))
            else:
                pushed = _each(lambda matrix, x=right: x @ matrix, stored)  # (K, B, O)
                total = total + jnp.einsum("bco,kbo->bck", left, pushed)
        return total

    def add_back(self, image: Parts, weights: Float[Array, "B C K"]) -> Parts:
        r"""``image`` with $\sum_{bc} w_{bck} J_{bc}$ added to its vectors."""
        plain, factored = image
        plain = plain + jnp.einsum("bck,bcq->kq", weights, self.plain)
        added = []
        for left, right, slot, part in zip(self.left, self.right, self.layout.factored, factored, strict=True):
            if slot.out_first:
                mixed = jnp.einsum("bck,bco->bko", weights, left).reshape(len(right), -1)
                added.append(part + (mixed.T @ right).reshape(part.shape))
            else:
                mixed = jnp.einsum("bck,bco->kbo", weights, left)
                added.append(part + _each(lambda back, x=right: x.T @ back, mixed))
        return plain, tuple(added)

    def gram(self) -> Float[Array, "B C C"]:
        r"""$J J^\top$ of each example."""
        total = self.plain @ jnp.swapaxes(self.plain, -1, -2)
        for left, right in zip(self.left, self.right, strict=True):
            squared = jnp.sum(right * right, -1)
            total = total + squared[:, None, None] * (left @ jnp.swapaxes(left, -1, -2))
        return total

    def dense(self) -> Float[Array, "B C P"]:
        """All rows written out."""
        batch, outputs = self.plain.shape[:2]
        outer = [
            jnp.einsum("bco,bi->bcoi" if slot.out_first else "bco,bi->bcio", left, right)
            for left, right, slot in zip(self.left, self.right, self.layout.factored, strict=True)
        ]
        parts = (self.plain.reshape(batch * outputs, -1), tuple(o.reshape(-1, *o.shape[2:]) for o in outer))
        return self.layout.join(parts).reshape(batch, outputs, -1)


def _each(function: Any, stacked: Array) -> Array:
    """``function`` of each matrix of a stack: a loop on the CPU, where a batched product would copy the stack."""
    return jax.lax.map(function, stacked) if jax.default_backend() == "cpu" else jax.vmap(function)(stacked)
