"""Which parameters are matrices that meet vectors, and which are added to what such a matrix gives."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float

from jax_core.gradients.factored import Layout, Slot
from jax_core.gradients.jacobians import Sides, find_layout
from jax_core.gradients.product import Product, Results
from jax_core.gradients.products import run_watched
from jax_core.operators.row_blocks import cut
from jax_core.types import ModelFn, Params
from jax_core.xla.compiled import cached_by_shape

_MOST_SIDE = 8192  # of a matrix, whose factors are diagonalised
_MOST_DENSE = 1024  # numbers of a parameter, or of one of its rows, whose block is written out
_MOST_IN_ROWS = 2**24
"""Numbers of all blocks of a parameter's rows, 64 MiB in float32, a quarter of what one factor may have.

Decomposing so many took nine seconds of one core for 16 blocks of 1,000, two for 512 of 144; turning 64 rows 0.07 s.
The kernels of MobileNet, EfficientNet and ConvNeXt-T need two million at most, those of ResNeXt-50 eleven, but for its
last stage's 85.
"""


class Rows(NamedTuple):
    """A leaf as rows each of which has a block: a matrix ``(number, width)``, or ``across`` the transpose of one."""

    number: int
    width: int
    across: bool

    def cut(self, vectors: Float[Array, "B P"]) -> Float[Array, "B G N"]:
        """Vectors over the leaf by its rows."""
        return cut(vectors, self.number, self.width, across=self.across)


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

    def rows(self, slot: Slot) -> Rows | None:
        """How a leaf that is neither a matrix nor small is cut, so that a block of each row can be written out.

        Along its first axis, the output channels of a grouped convolution's kernel; else along its last.
        """
        if self.is_dense(slot) or len(slot.shape) < 2:
            return None
        ends = [Rows(n, slot.size // n, across) for n, across in ((slot.shape[0], False), (slot.shape[-1], True))]
        fitting = [r for r in ends if 1 < r.width <= _MOST_DENSE and slot.size * r.width <= _MOST_IN_ROWS]
        return fitting[0] if fitting else None


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
