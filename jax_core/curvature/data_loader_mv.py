"""Products summed over a loader, which is proved to show the same samples on every pass."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from jax_core import trees
from jax_core.batches import Batch, as_batch, fingerprint, prefetched
from jax_core.compiled import jit_closure
from jax_core.types import Data

Cache = Literal["auto", "memory", "none"]
Reduce = Callable[[Any, Any], tuple[Any, Any]]


def reduce_add(res_new: Any, state: Any = None) -> tuple[Any, Any]:
    """Sum over batches: ``(running total, state)``."""
    total = res_new if state is None else trees.add(state, res_new)
    return total, total


def reduce_concat(res_new: Any, state: Any = None) -> tuple[Any, Any]:
    """Concatenate over batches along the leading axis."""
    joined = res_new if state is None else jax.tree.map(lambda a, b: jnp.concatenate([a, b]), state, res_new)
    return joined, joined


class LoaderPasses:
    """Repeated passes over a loader, as device arrays, with the same samples each time.

    The first pass can keep a snapshot, which then serves the later ones; without it every pass reads the loader again
    and must show the samples of the first, in whatever order and batches (see
    :func:`~jax_core.batches.fingerprint`); the next batch is then read while the current one is worked on.

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

    @property
    def num_samples(self) -> int | None:
        """Samples of the first whole pass, or ``None`` before it ended."""
        return None if self._seen is None else self._seen[0]

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

    def shown(self, label: str) -> Iterable[Batch]:
        """One pass with a progress bar where bars are wanted; a pass that reads the loader shows its own."""
        if self._snapshot is None or self._progress is None:
            return self
        return tqdm(self._snapshot, desc=label, unit="batch", leave=False, delay=1)

    def _read(self) -> Iterator[Batch]:
        first = self._seen is None
        kept: list[Batch] | None = [] if first and self._budget else None
        count, total, used = 0, 0, 0
        # An iterator, since a bar may start an iterable twice, and a loader's workers with it.
        shown = {"desc": self._progress, "disable": self._progress is None, "leave": False, "delay": 1}
        bar = tqdm(iter(self._loader), total=_length(self._loader), unit="batch", **shown)
        # What is kept is read in one go; what is not is read while the batch before it is worked on.
        converted = self._converted(bar, first)
        for samples, value, batch in converted if kept is not None else prefetched(converted):
            count, total = count + samples, (total + value) % 2**64
            if kept is not None:
                used += _nbytes(batch)
                kept.append(batch)
                kept = kept if used <= self._budget else None
            if samples:
                yield batch
        self._finish(count, total, kept)

    def _converted(self, raws: Iterable[Any], first: bool) -> Iterator[tuple[int, int, Batch]]:
        for number, raw in enumerate(raws):
            host = as_batch(self._transform(raw))
            if first and self._check is not None:
                self._check(number, host)
            # A copy: what the loader yields may live in memory that it reuses for its next batch.
            yield *fingerprint(host), self._place(jax.tree.map(jnp.array, host))

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


def _length(loader: Iterable[Any]) -> int | None:
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError:  # a stream knows no length
        return None


def _nbytes(batch: Batch) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(batch))


class DataLoaderMV:
    """A product with a sum over a loader's batches: ``vec -> sum_b mv(vec, b)``.

    Each batch is an argument of one compiled program, called from a loop on the host. ``to_dense``, ``diagonal`` and
    ``wrap_function`` are carried inside the sum, so that the loader is read once for a dense matrix or a diagonal.
    """

    def __init__(
        self,
        mv: Callable[[Any, Data], Any],
        loader: Iterable[Any],
        transform: Callable[[Any], Data] | None = None,
        *,
        reduce: Reduce = reduce_add,
        verbose_logging: bool = False,
        cache: Cache = "none",
        cache_bytes: int = 2**31,
    ) -> None:
        """Bind a product to a loader.

        Args:
            mv: ``mv(vec, data)``, for instance from ``create_ggn_mv_without_data``.
            loader: Yields mappings with ``input`` and ``target``, or ``(input, target)`` pairs, of arrays.
            transform: Makes such a batch of what the loader yields.
            reduce: ``(result, state) -> (total, state)`` over batches; a sum by default.
            verbose_logging: Show a progress bar over each pass.
            cache: ``"none"`` reads the loader on every product and raises if a pass shows other samples than the
                first; ``"memory"`` keeps a snapshot of the first pass; ``"auto"`` keeps one within ``cache_bytes``.
            cache_bytes: The budget of ``"auto"``.
        """
        progress = "Processing batches" if verbose_logging else None
        self._mv, self._reduce = mv, reduce
        self._passes = LoaderPasses(
            loader, transform=transform, cache=cache, cache_bytes=cache_bytes, progress=progress
        )
        self._compiled = jit_closure(mv)

    @property
    def num_samples(self) -> int | None:
        """Samples seen in one pass, or ``None`` before the first product."""
        return self._passes.num_samples

    def __call__(self, vec: Any) -> Any:
        """One pass over the loader.

        Raises:
            TypeError: Under ``jit`` or ``vmap``, where every batch would become a constant of the program.
            ValueError: If the loader is empty, or shows other samples than in its first pass.
        """
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(vec)):
            raise TypeError(
                "A product over a loader reads data and cannot be traced: every batch would be baked into the "
                "program. Call it from Python (Lanczos and the others here do, whatever mv_jit says), use "
                ".block(vectors) in place of vmap, or create_ggn_mv for data that fits in one batch."
            )
        return self._over_batches(self._compiled, vec)

    def block(self, vectors: Any) -> Any:
        """The product with a block of vectors, a leading axis on every leaf, in one pass."""
        return self._over_block(vectors)

    @functools.cached_property
    def _over_block(self) -> DataLoaderMV:
        return self.map_product(lambda mv: lambda block, data: jax.vmap(lambda vec: mv(vec, data))(block))

    def sum_over(self, function: Callable[[Callable[[Any], Any]], Callable[..., Any]], *args: Any) -> Any:
        """``function(v -> mv(v, batch))(*args)`` reduced over the batches, compiled once, in one pass."""
        compiled = jit_closure(lambda arguments, batch: function(lambda v: self._mv(v, batch))(*arguments))
        return self._over_batches(compiled, args)

    def map_product(self, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> DataLoaderMV:
        """The same passes with the product of each batch wrapped."""
        mapped = object.__new__(DataLoaderMV)
        mapped._mv, mapped._reduce, mapped._passes = wrap(self._mv), self._reduce, self._passes
        mapped._compiled = jit_closure(mapped._mv)
        return mapped

    def _over_batches(self, compiled: Callable[[Any, Data], Any], argument: Any) -> Any:
        result = state = None
        for batch in self._passes:
            result, state = self._reduce(compiled(argument, {"input": batch.input, "target": batch.target}), state)
        return result


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
