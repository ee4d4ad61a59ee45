"""What one block of rows adds, as steps of a pass over the data; each is known by its value, and so is its program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jax_core.gradients.factored import FactoredRows, Layout, Parts
from jax_core.gradients.jacobians import factored_gradients
from jax_core.gradients.rotated import Coordinates, squares
from jax_core.gradients.rows import Rows
from jax_core.kronecker.layers import Layers
from jax_core.types import ModelFn, Params


@dataclass(frozen=True)
class PushFactored:
    """Rows of the curvature as gradients in a layout, ``(R, 1, ...)``."""

    layout: Layout

    def __call__(self, model_fn: ModelFn, params: Params, rows: Rows, chunk: int) -> FactoredRows:
        """The gradients of a block, ``chunk`` rows at a time. Traceable."""
        total = rows.cotangent.shape[0]
        if total <= chunk:
            return factored_gradients(model_fn, params, rows.input, rows.cotangent, self.layout)
        pieces = jax.tree.map(lambda leaf: leaf.reshape(total // chunk, chunk, *leaf.shape[1:]), rows)
        found = jax.lax.map(
            lambda piece: factored_gradients(model_fn, params, piece.input, piece.cotangent, self.layout), pieces
        )
        return jax.tree.map(lambda leaf: leaf.reshape(total, *leaf.shape[2:]), found)


@dataclass(frozen=True)
class AddFactors:
    r"""For each matrix $\sum_s \bar y_s \bar y_s^\top$, for any other leaf its block, or the block's diagonal."""

    layers: Layers

    def start(self, dtype: Any) -> list[Array]:
        """Zeros, in the order of leaves."""
        outs = {slot.leaf: slot.shape[0] for slot in self.layers.layout.factored}
        sides = [(outs.get(slot.leaf, slot.size), slot) for slot in self.layers.slots]
        written = [slot.leaf in outs or self.layers.is_dense(slot) for slot in self.layers.slots]
        return [jnp.zeros((n, n) if w else n, dtype) for (n, _), w in zip(sides, written, strict=True)]

    def __call__(self, carry: list[Array], rows: FactoredRows, extra: None) -> list[Array]:
        """The factors with a block's added."""
        added, start = {}, 0
        for slot in rows.layout.plain:
            own = rows.plain[..., start : start + slot.size].reshape(-1, slot.size)
            added[slot.leaf] = own.T @ own if self.layers.is_dense(slot) else jnp.square(own).sum(0)
            start += slot.size
        for slot, left in zip(rows.layout.factored, rows.left, strict=True):
            own = left.reshape(-1, left.shape[-1])
            added[slot.leaf] = own.T @ own
        return [total + added[leaf] for leaf, total in enumerate(carry)]


def add_rotated(
    carry: tuple[Parts | None, Parts], rows: FactoredRows, extra: tuple[Coordinates, Parts | None]
) -> tuple[Parts | None, Parts]:
    """In rotated coordinates, the products with a block of vectors, and the diagonal."""
    (image, diagonal), (coordinates, vectors) = carry, extra
    turned = coordinates.rotate(rows)
    diagonal = jax.tree.map(jnp.add, diagonal, squares(turned))
    if image is None or vectors is None:
        return image, diagonal
    return turned.add_back(image, turned.times_rows(vectors)), diagonal
