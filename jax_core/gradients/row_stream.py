"""One pass over a loader as blocks of curvature rows, with what else that pass can tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_core.curvature.data_sums import DataSums, evaluate
from jax_core.curvature.fold import is_same_data, like_carry
from jax_core.curvature.stream import Stream
from jax_core.data.batches import Batch, KnownSizes, batch_size, padded
from jax_core.data.checkpoint import Checkpoint, Saved
from jax_core.data.passes import LoaderPasses
from jax_core.data.trees import get_size, on_device_of
from jax_core.gradients.rows import Rows, loss_rows, pack_rows, plan_rows, push_back
from jax_core.likelihoods import Likelihood
from jax_core.types import ModelFn, Params
from jax_core.xla.chunks import example_shapes

Carry = TypeVar("Carry")
Step: TypeAlias = Callable[[Any, Any, Any], Any]


class RowStream(Stream):
    r"""The rows of $G = R^\top R$ over a loader (see :mod:`jax_core.gradients.rows`), unscaled.

    Attributes:
        sums: What the latest pass added up.
        num_rows: Rows that it kept.
    """

    def __init__(
        self,
        model_fn: ModelFn,
        params: Params,
        likelihood: Likelihood,
        passes: LoaderPasses,
        *,
        tolerance: float,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        """Bind a model and its loss to a loader.

        Args:
            model_fn: As of every stream, like the next three.
            params: Where to linearise.
            likelihood: The loss.
            passes: The data.
            tolerance: Largest share of the loss curvature that may be dropped, per batch.
            checkpoint: Where the carry of :meth:`fold` is kept.
        """
        super().__init__(model_fn, params, likelihood, passes, checkpoint=checkpoint)
        self.tolerance = tolerance
        self.sums, self.num_rows, self._read = DataSums(), 0, 0

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
        saved = None if self._checkpoint is None else self._checkpoint.latest()
        return self._fold(step, start, extra, saved)

    def _fold(self, step: Step, start: Carry, extra: Any, saved: Saved | None) -> Carry:
        # a copy, since the first step gives up the carry's buffers, and the pass may have to start anew
        begun = start if saved is None else like_carry(jax.tree.map(jnp.copy, start), saved.arrays)
        carry, extra = on_device_of(self.params, (begun, extra))
        done = 0
        for rows, sizes in self._blocks():
            done += 1
            if saved is not None and done <= saved.done:  # its rows are found again, and not pushed back
                if done == saved.done and not is_same_data(saved, self._mark()):
                    return self._fold(step, start, extra, None)
                continue
            carry = _advance(step, carry, extra, self.model_fn, self.params, rows, sizes.chunk)
            if self._checkpoint is not None:
                self._checkpoint.offer([*map(np.asarray, jax.tree.leaves(carry))], done, self._mark())
        if self._checkpoint is not None:
            self._checkpoint.save([*map(np.asarray, jax.tree.leaves(carry))], done, self._mark())
        return carry

    def _mark(self) -> tuple[int, ...]:
        """What identifies the batches that were read so far in this pass."""
        return self._read, *self.passes.mark(self._read)

    def _blocks(self) -> Iterator[tuple[Rows, Any]]:
        self.sums, self.num_rows = DataSums(), 0
        batches = self._with_rows()
        first = next(batches)
        sizes = plan_rows(self.model_fn, self.params, example_shapes(first[0].input))

        def chained() -> Iterator[tuple[Batch, np.ndarray, np.ndarray]]:
            yield first
            yield from batches

        for rows in pack_rows(chained(), sizes.block):
            yield rows, sizes

    def _with_rows(self) -> Iterator[tuple[Batch, np.ndarray, np.ndarray]]:
        known = KnownSizes()
        for number, batch in enumerate(self.passes.with_progress("Curvature")):
            count = batch_size(batch)
            whole = padded(batch, known.fit(count) - count)
            outputs, data = evaluate(self.model_fn, self.params, self.likelihood, whole, jnp.asarray(count))
            self.sums.add(data, number)
            self._read = number + 1
            sample, cotangent = loss_rows(self.likelihood, outputs, whole.target, self.tolerance, count)
            self.num_rows += len(sample)
            yield batch, sample, cotangent

    def matrix(self, limit_bytes: int) -> Float[Array, "N P"] | None:
        """All rows as one matrix if they fit, else ``None`` (after reading only as far as the limit)."""
        blocks: list[Array] = []
        for rows, sizes in self._blocks():
            blocks.append(_push_back(self.model_fn, self.params, rows, sizes.chunk))
            if sum(block.nbytes for block in blocks) > limit_bytes:
                return None
        return jnp.concatenate(blocks)[: self.num_rows] if blocks else jnp.zeros((0, self.size), self.dtype)


@partial(jax.jit, static_argnames=("step", "chunk"), donate_argnames="carry")
def _advance(step: Step, carry: Any, extra: Any, model_fn: ModelFn, params: Params, rows: Rows, chunk: int) -> Any:
    return step(carry, push_back(model_fn, params, rows, chunk), extra)


_push_back = jax.jit(push_back, static_argnums=3)
