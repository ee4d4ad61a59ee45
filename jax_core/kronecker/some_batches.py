"""Some batches of a pass, where an estimate will do."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from jax_core.data.batches import Batch
from jax_core.data.passes import LoaderPasses


class SomeBatches(LoaderPasses):
    """Every so many batches of another's passes, evenly over each; all of them are read."""

    def __init__(self, passes: LoaderPasses, step: int) -> None:
        """Show one in ``step`` batches, from the first on."""
        self._passes, self._step = passes, step

    @property
    def num_samples(self) -> int | None:
        """Samples of the whole pass."""
        return self._passes.num_samples

    @property
    def fingerprint(self) -> tuple[int, int] | None:
        """Of the whole pass."""
        return self._passes.fingerprint

    def mark(self, batches: int) -> tuple[int, int]:
        """Number and hash of the samples up to the last of so many that were shown."""
        return self._passes.mark((batches - 1) * self._step + 1)

    def peek(self) -> Batch:
        """The first batch; the next pass goes on from there."""
        return self._passes.peek()

    def __iter__(self) -> Iterator[Batch]:
        """One pass."""
        return itertools.islice(iter(self._passes), 0, None, self._step)

    def with_progress(self, label: str) -> Iterable[Batch]:
        """One pass with a progress bar where bars are wanted."""
        return itertools.islice(iter(self._passes.with_progress(label)), 0, None, self._step)
