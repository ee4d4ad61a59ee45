"""Which parameters are matrices that meet vectors, and which are added to what such a matrix gives."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import jax

from jax_core.gradients.factored import Layout, Slot
from jax_core.gradients.jacobians import Sides, find_layout
from jax_core.gradients.product import Product, Results
from jax_core.gradients.products import run_watched
from jax_core.types import ModelFn, Params
from jax_core.xla.compiled import cached_by_shape

_MOST_SIDE = 8192  # of a matrix, whose factors are diagonalised
_MOST_DENSE = 1024  # numbers of a parameter whose block is written out


@dataclass(frozen=True)
class Layers:
    """The leaves of a network's parameters by what becomes of them.

    Attributes:
        layout: Matrices in factors, all else written out: the rows that curvature is gathered from.
        biases: Pairs ``(leaf, matrix)`` of a vector that is added to a matrix's product.
    """

    layout: Layout
    biases: tuple[tuple[int, int], ...]

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Of all leaves, in their order."""
        return tuple(sorted((*self.layout.plain, *self.layout.factored), key=lambda slot: slot.leaf))

    @property
    def matrices(self) -> dict[int, int]:
        """The place of each matrix among the factored leaves, by its leaf."""
        return {slot.leaf: i for i, slot in enumerate(self.layout.factored)}

    def is_dense(self, slot: Slot) -> bool:
        """Whether the block of a leaf that is no matrix is small enough to be written out."""
        return slot.size <= _MOST_DENSE


@cached_by_shape
def find_layers(model_fn: ModelFn, params: Params, example: Any) -> Layers:
    """Sort the leaves, from the shapes of one example; parameters in the order of gradients."""
    layout = find_layout(model_fn, params, example, _diagonalised)
    outs = {slot.leaf: slot.outs for slot in layout.factored}
    uses: Counter[int] = Counter()
    added: dict[int, list[int]] = {}
    lost: set[int] = set()

    def count(product: Product) -> Results:
        uses[product.leaf] += 1
        return product.result

    def note(offset: int, matrix: int) -> None:
        added.setdefault(offset, []).append(matrix)

    jax.eval_shape(lambda x, p: run_watched(model_fn, p, x, set(outs), count, note, lost.add), example, params)
    sizes = {slot.leaf: slot.size for slot in layout.plain}
    found = [(leaf, met[0]) for leaf, met in added.items() if leaf not in lost and set(met) == {met[0]}]
    each = [pair for pair in found if len(added[pair[0]]) == uses[pair[1]]]  # wherever the matrix is used
    return Layers(layout, tuple((leaf, matrix) for leaf, matrix in each if sizes.get(leaf) == outs[matrix]))


def _diagonalised(leaf: int, sides: Sides) -> bool:
    """Whether both factors of a matrix can be; that of a table's inputs is diagonal."""
    return (sides.outs if sides.is_table else max(sides.outs, sides.width)) <= _MOST_SIDE
