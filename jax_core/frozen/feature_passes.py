"""Passes over a loader that show features in the place of inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tqdm.auto import tqdm

from jax_core.data.batches import Batch
from jax_core.data.passes import DerivedPasses, LoaderPasses
from jax_core.data.trees import get_bytes
from jax_core.frozen.split import Trunk
from jax_core.frozen.trunk import features


class FeaturePasses(DerivedPasses):
    """The passes of a loader with each batch's inputs sent through a trunk, once if all features can be kept.

    What the passes prove about their samples, and the marks of checkpoints, are those of the inputs.
    """

    def __init__(self, trunk: Trunk, passes: LoaderPasses) -> None:
        """Put a trunk before passes; features are kept within the budget that those have for inputs."""
        super().__init__(passes)
        self._trunk = trunk
        self._first: Batch | None = None
        self._kept: list[Batch] | None = None

    @property
    def cached(self) -> bool:
        """Whether later passes are served from memory."""
        return self._kept is not None

    def peek(self) -> Batch:
        """The first batch; the next pass goes on from there."""
        if self._kept is not None:
            return self._kept[0]
        if self._first is None:
            self._first = self._features(self._passes.peek())
        return self._first

    def __iter__(self) -> Iterator[Batch]:
        """One pass."""
        return self._mapped(self._passes) if self._kept is None else iter(self._kept)

    def with_progress(self, label: str) -> Iterable[Batch]:
        """One pass with a progress bar where bars are wanted."""
        if self._kept is None:
            return self._mapped(self._passes.with_progress(label))
        return tqdm(self._kept, desc=label, unit="batch", leave=False, delay=1) if self.shows else self

    def _features(self, batch: Batch) -> Batch:
        return Batch(features(self._trunk, batch.input), batch.target)

    def _mapped(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        kept: list[Batch] | None = []
        used = 0
        for batch in batches:
            # the one that was looked at first is not computed again
            (ready, self._first) = (self._first or self._features(batch), None)
            used += get_bytes(ready)
            if kept is not None:
                kept.append(ready)
                kept = kept if used <= self.budget else None
            yield ready
        self._kept = kept
