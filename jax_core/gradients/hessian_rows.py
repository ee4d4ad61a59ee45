"""A pass over a loader that finds rows of a curvature, and what every such pass counts and keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jax_core.curvature.data_sums import DataSums, evaluate
from jax_core.curvature.fold import is_same_data, like_carry
from jax_core.curvature.stream import Stream
from jax_core.data.batches import Batch, KnownSizes, batch_size, padded
from jax_core.data.checkpoint import Checkpoint
from jax_core.data.passes import LoaderPasses
from jax_core.data.trees import on_device_of
from jax_core.gradients.cotangents import Cotangents
from jax_core.gradients.rows import loss_rows
from jax_core.likelihoods import Likelihood
from jax_core.types import ModelFn, Params

Carry = TypeVar("Carry")
Item = TypeVar("Item")


class HessianRows(Stream):
    """Batches with the rows of their loss Hessians, and a running result that a checkpoint keeps.

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
            checkpoint: Where the running result is kept.
        """
        super().__init__(model_fn, params, likelihood, passes, checkpoint=checkpoint)
        self.tolerance = tolerance
        self.sums, self.num_rows, self._read = DataSums(), 0, 0

    def batches_with_rows(self) -> Iterator[tuple[Batch, np.ndarray, Cotangents]]:
        """One pass: batches, and of their rows the samples and the cotangents."""
        self.sums, self.num_rows = DataSums(), 0
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

    def folded(
        self,
        items: Callable[[], Iterable[Item]],
        advance: Callable[[Any, Any, Item], Any],
        start: Carry,
        extra: Any,
        *,
        resume: bool = True,
    ) -> Carry:
        """``carry = advance(carry, extra, item)`` over a pass, from where a checkpoint has left it.

        Args:
            items: Makes the pass, from :meth:`batches_with_rows`.
            advance: May give up the carry's buffers.
            start: First carry.
            extra: Arrays that every step needs.
            resume: Whether to look at what the checkpoint holds.
        """
        saved = self._checkpoint.latest() if self._checkpoint is not None and resume else None
        # a copy, since the first step gives up the carry's buffers, and the pass may have to start anew
        begun = start if saved is None else like_carry(jax.tree.map(jnp.copy, start), saved.arrays)
        carry, placed = on_device_of(self.params, (begun, extra))
        done = 0
        for item in items():
            done += 1
            if saved is not None and done <= saved.done:  # its rows are found again, and not worked on
                if done == saved.done and not is_same_data(saved, self._mark()):
                    return self.folded(items, advance, start, extra, resume=False)
                continue
            carry = advance(carry, placed, item)
            if self._checkpoint is not None:
                self._checkpoint.offer([*map(np.asarray, jax.tree.leaves(carry))], done, self._mark())
        if self._checkpoint is not None:
            self._checkpoint.save([*map(np.asarray, jax.tree.leaves(carry))], done, self._mark())
        return carry

    def _mark(self) -> tuple[int, ...]:
        """What identifies the batches that were read so far in this pass."""
        return self._read, *self.passes.mark(self._read)
