"""Repeated passes over a loader, proved to show the same samples each time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from jax_core.data.batches import Batch, as_batch, fingerprint, pieces, prefetched
from jax_core.types import Data

Cache = Literal["auto", "memory", "none"]


class LoaderPasses:
    """Repeated passes over a loader, as device arrays, with the same samples each time.

    The first pass can keep a snapshot, which then serves the later ones; without it every pass reads the loader again
    and must show the samples of the first, in whatever order and batches (see
    :func:`~jax_core.data.batches.fingerprint`); the next batch is then read while the current one is worked on.

    Attributes:
        num_samples: Samples seen in the first whole pass, or ``None`` before.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        *,
        transform: Callable[[Any], Data] | None = None,
        check: Callable[[int, Batch], None] | None = None,
        place: Callable[[Batch], Batch] | None = None,
        cache: Cache = "auto",
        cache_bytes: int = 2**31,
        progress: str | None = None,
    ) -> None:
        """Wrap a loader.

        Args:
            loader: Iterated anew for each pass.
            transform: From what the loader yields to a mapping or pair of arrays.
            check: Called with each batch of the first pass and its number; raises on bad data.
            place: Puts a checked batch on the device where it is worked on; JAX's choice by default.
            cache: ``"memory"`` keeps a snapshot, ``"none"`` streams, ``"auto"`` keeps one while it fits.
            cache_bytes: The budget of ``"auto"``.
            progress: Label of a progress bar over each pass that reads the loader, or ``None`` for none.

        Raises:
            ValueError: For an unknown ``cache``.
        """
        if cache not in ("auto", "memory", "none"):
            raise ValueError(f"Unknown cache {cache!r}. Choose 'auto', 'memory' or 'none'.")
        self._loader, self._transform, self._check = loader, transform or (lambda batch: batch), check
        self._place = place or (lambda batch: batch)
        self._budget = {"auto": cache_bytes, "memory": float("inf"), "none": 0}[cache]
        self._progress = progress
        self._snapshot: list[Batch] | None = None
        self._seen: tuple[int, int] | None = None
        self._resumed: Iterator[Batch] | None = None
        self._marks: list[tuple[int, int]] = []

    @property
    def num_samples(self) -> int | None:
        """Samples of the first whole pass, or ``None`` before it ended."""
        return None if self._seen is None else self._seen[0]

    @property
    def fingerprint(self) -> tuple[int, int] | None:
        """Number and hash of the samples of the first whole pass, or ``None`` before it ended."""
        return self._seen

    @property
    def budget(self) -> float:
        """Bytes that may be kept."""
        return self._budget

    @property
    def shows(self) -> bool:
        """Whether progress bars are wanted."""
        return self._progress is not None

    def mark(self, batches: int) -> tuple[int, int]:
        """Number and hash of the samples in the first ``batches`` of the pass that has read the loader last."""
        return self._marks[batches - 1]

    @property
    def cached(self) -> bool:
        """Whether later passes are served from memory."""
        return self._snapshot is not None

    def preload(self) -> None:
        """Read the loader now, as far as the snapshot reaches, so that bad data is found before any work.

        Data past the budget are read by the next pass, which goes on from here: nothing is read twice.
        """
        if not self._budget or self._seen is not None:
            return
        pending, read, used = self._read(), [], 0
        for batch in pending:
            read.append(batch)
            used += _nbytes(batch)
            if used > self._budget:
                self._resumed = itertools.chain(read, pending)
                return

    def peek(self) -> Batch:
        """The first batch; the next pass goes on from there."""
        if self._snapshot is not None:
            return self._snapshot[0]
        pending = iter(self)
        first = next(pending)
        self._resumed = itertools.chain([first], pending)
        return first

    def __iter__(self) -> Iterator[Batch]:
        """One pass.

        Raises:
            ValueError: If the loader yields no sample, or other samples than in its first pass.
        """
        if self._resumed is not None:
            resumed, self._resumed = self._resumed, None
            return resumed
        return iter(self._snapshot) if self._snapshot is not None else self._read()

    def with_progress(self, label: str) -> Iterable[Batch]:
        """One pass with a progress bar where bars are wanted; a pass that reads the loader shows its own."""
        if self._snapshot is None or self._progress is None:
            return self
        return tqdm(self._snapshot, desc=label, unit="batch", leave=False, delay=1)

    def _read(self) -> Iterator[Batch]:
        first = self._seen is None
        self._marks = []
        kept: list[Batch] | None = [] if first and self._budget else None
        count, total, used = 0, 0, 0
        # An iterator, since a bar may start an iterable twice, and a loader's workers with it.
        shown = {"desc": self._progress, "disable": self._progress is None, "leave": False, "delay": 1}
        bar = tqdm(iter(self._loader), total=_length(self._loader), unit="batch", **shown)
        # What is kept is read in one go; what is not is read while the batch before it is worked on.
        converted = self._converted(bar, first)
        for samples, value, batch in converted if kept is not None else prefetched(converted):
            count, total = count + samples, (total + value) % 2**64
            if kept is not None and samples:
                used += _nbytes(batch)
                kept.append(batch)
                kept = kept if used <= self._budget else None
            if samples:
                self._marks.append((count, total))
                yield batch
        self._finish(count, total, kept)

    def _converted(self, raws: Iterable[Any], first: bool) -> Iterator[tuple[int, int, Batch]]:
        for number, raw in enumerate(raws):
            host = as_batch(self._transform(raw))
            if first and self._check is not None:
                self._check(number, host)
            # A copy: what the loader yields may live in memory that it reuses for its next batch. JAX copies from numpy
            # while Python goes on, so it is waited for.
            yield *fingerprint(host), self._place(jax.block_until_ready(jax.tree.map(jnp.array, host)))

    def _finish(self, count: int, total: int, kept: list[Batch] | None) -> None:
        if count == 0 and self._seen is None:
            raise ValueError("The loader yielded no samples. Give a loader with at least one batch.")
        if self._seen is None:
            self._seen, self._snapshot = (count, total), kept
        elif self._seen != (count, total):
            raise ValueError(
                f"The loader showed other samples on this pass ({count}) than on its first ({self._seen[0]}), so its "
                "sum is not one matrix: it shuffles under a limit, augments at random, or is an iterator that is used "
                "up. Pass cache='memory' to keep the first pass, or a loader that repeats itself."
            )


class DerivedPasses(LoaderPasses):
    """Passes that show something else of another's batches; what those prove and know is theirs."""

    def __init__(self, passes: LoaderPasses) -> None:
        """Bind the passes behind these."""
        self._passes = passes

    @property
    def num_samples(self) -> int | None:
        """Samples of the first whole pass, or ``None`` before it ended."""
        return self._passes.num_samples

    @property
    def fingerprint(self) -> tuple[int, int] | None:
        """Number and hash of the samples of the first whole pass, or ``None`` before it ended."""
        return self._passes.fingerprint

    @property
    def shows(self) -> bool:
        """Whether progress bars are wanted."""
        return self._passes.shows

    @property
    def budget(self) -> float:
        """Bytes that may be kept."""
        return self._passes.budget

    def mark(self, batches: int) -> tuple[int, int]:
        """Number and hash of the samples in the first ``batches`` of the pass that has read the loader last."""
        return self._passes.mark(batches)

    @property
    def cached(self) -> bool:
        """Whether later passes are served from memory."""
        return self._passes.cached

    def preload(self) -> None:
        """Read the loader now, as far as the snapshot reaches."""
        self._passes.preload()

    def peek(self) -> Batch:
        """The first batch; the next pass goes on from there."""
        return self._passes.peek()


class SmallerPasses(DerivedPasses):
    """Passes that show another's batches in pieces of a number of samples at most."""

    def __init__(self, passes: LoaderPasses, size: int) -> None:
        """Bind the passes, and the largest piece."""
        super().__init__(passes)
        self._size = size
        self._shown: list[tuple[int, int]] = []

    def mark(self, batches: int) -> tuple[int, int]:
        """What identifies the samples in the first ``batches`` pieces: those of their batches, and the last's place."""
        batch, place = self._shown[batches - 1]
        count, total = self._passes.mark(batch)
        return count, total + place

    def peek(self) -> Batch:
        """The first piece; the next pass begins with it."""
        return next(pieces(self._passes.peek(), self._size))

    def __iter__(self) -> Iterator[Batch]:
        """One pass."""
        return self._cut(self._passes)

    def with_progress(self, label: str) -> Iterable[Batch]:
        """One pass with a progress bar where bars are wanted."""
        return self._cut(self._passes.with_progress(label))

    def _cut(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        self._shown = []
        for number, batch in enumerate(batches, 1):
            for place, piece in enumerate(pieces(batch, self._size)):
                self._shown.append((number, place))
                yield piece


def _length(loader: Iterable[Any]) -> int | None:
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError:  # a stream knows no length
        return None


def _nbytes(batch: Batch) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(batch))


def finite_or_raise(number: int, batch: Batch) -> None:
    """A check for :class:`LoaderPasses`: refuse NaN and infinity in the inputs.

    Raises:
        ValueError: Naming the batch.
    """
    for leaf in jax.tree.leaves(batch.input):
        values = np.asarray(leaf)
        if values.dtype.kind in "fc" and not np.isfinite(values).all():
            raise ValueError(
                f"Batch {number} of the loader holds NaN or infinite inputs. Remove or repair those samples first."
            )
