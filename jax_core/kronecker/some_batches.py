"""Some batches of a pass, where an estimate will do."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from jax_core.data.batches import Batch
from jax_core.data.passes import DerivedPasses, LoaderPasses


class SomeBatches(DerivedPasses):
    """Every so many batches of another's passes, evenly over each; all of them are read."""

    def __init__(self, passes: LoaderPasses, step: int) -> None:
        """Show one in ``step`` batches, from the first on."""
        super().__init__(passes)
        self._step = step

    def mark(self, batches: int) -> tuple[int, int]:
        """Number and hash of the samples up to the last of so many that were shown."""
        return self._passes.mark((batches - 1) * self._step + 1)

    def __iter__(self) -> Iterator[Batch]:
        """One pass."""
        return itertools.islice(iter(self._passes), 0, None, self._step)

    def with_progress(self, label: str) -> Iterable[Batch]:
        """One pass with a progress bar where bars are wanted."""
        return itertools.islice(iter(self._passes.with_progress(label)), 0, None, self._step)
