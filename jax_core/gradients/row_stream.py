"""One pass over a loader as blocks of curvature rows, with what else that pass can tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_core.data.batches import Batch
from jax_core.data.trees import get_size
from jax_core.gradients.cotangents import Cotangents
from jax_core.gradients.hessian_rows import HessianRows
from jax_core.gradients.rows import Rows, pack_rows, plan_rows, push_back
from jax_core.types import ModelFn, Params
from jax_core.xla.chunks import example_shapes

Carry = TypeVar("Carry")
Step: TypeAlias = Callable[[Any, Any, Any], Any]


class RowStream(HessianRows):
    r"""The rows of $G = R^\top R$ over a loader (see :mod:`jax_core.gradients.rows`), unscaled."""

    @property
    def size(self) -> int:
        """Number of parameters."""
        return get_size(self.params)

    @property
    def dtype(self) -> Any:
        """Of the rows."""
        return jnp.result_type(*jax.tree.leaves(self.params))

    def fold(self, step: Step, start: Carry, extra: Any = None) -> Carry:
        """One pass: ``carry = step(carry, block, extra)`` over the blocks of rows, the carry updated in place.

        Args:
            step: Traceable, and known by its value or defined at module level: it identifies the compiled program.
            start: First carry; its buffers are given up.
            extra: Arrays that every step needs.
        """

        def advance(carry: Any, extra: Any, block: tuple[Rows, Any]) -> Any:
            rows, sizes = block
            return _advance(step, carry, extra, self.model_fn, self.params, rows, sizes.chunk)

        return self.folded(self._blocks, advance, start, extra)

    def _blocks(self) -> Iterator[tuple[Rows, Any]]:
        batches = self.batches_with_rows()
        first = next(batches)
        sizes = plan_rows(self.model_fn, self.params, example_shapes(first[0].input))

        def chained() -> Iterator[tuple[Batch, np.ndarray, Cotangents]]:
            yield first
            yield from batches

        for rows in pack_rows(chained(), sizes.block):
            yield rows, sizes

    def matrix(self, limit_bytes: int) -> Float[Array, "N P"]:
        """All rows as one matrix.

        Raises:
            ValueError: If they do not fit, after reading only as far as the limit.
        """
        blocks: list[Array] = []
        for rows, sizes in self._blocks():
            blocks.append(_push_back(self.model_fn, self.params, rows, sizes.chunk))
            if sum(block.nbytes for block in blocks) > limit_bytes:
                raise ValueError(
                    f"method='gram' keeps one row per sample and output: more than {limit_bytes} bytes here. Use "
                    "method='nystrom', fewer samples, or a larger rows_bytes."
                )
        return jnp.concatenate(blocks)[: self.num_rows] if blocks else jnp.zeros((0, self.size), self.dtype)


@partial(jax.jit, static_argnames=("step", "chunk"), donate_argnames="carry")
def _advance(step: Step, carry: Any, extra: Any, model_fn: ModelFn, params: Params, rows: Rows, chunk: int) -> Any:
    return step(carry, push_back(model_fn, params, rows, chunk), extra)


_push_back = jax.jit(push_back, static_argnums=3)
