"""A few of the samples that a pass reads, each as likely, for what is estimated from training data afterwards."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jax_core.data.batches import Batch, batch_size

_MOST = 512
_BYTES = 2**26
_TOGETHER = 128  # in a batch of those kept


class Reservoir:
    """A uniform sample of those added, of a size known before their number is (Vitter, 1985, doi:10.1145/3147.3165)."""

    def __init__(self, seed: int = 0, most: int = _MOST) -> None:
        """Keep nothing yet; in the end ``most`` samples, or as many as take 64 megabytes."""
        self._random, self._most, self._seen = np.random.default_rng(seed), most, 0
        self._kept: Batch | None = None

    def add(self, batch: Batch) -> None:
        """Let each sample of a batch take the place of an earlier one, with the chance that keeps all as likely."""
        host, count = jax.tree.map(np.asarray, batch), batch_size(batch)
        if not count:
            return
        if self._kept is None:
            each = sum(leaf[:1].nbytes for leaf in jax.tree.leaves(host))
            self._most = max(1, min(self._most, _BYTES // max(each, 1)))
            self._kept = jax.tree.map(lambda leaf: np.empty((self._most, *leaf.shape[1:]), leaf.dtype), host)
        numbers = np.arange(self._seen, self._seen + count)
        places = np.where(numbers < self._most, numbers, self._random.integers(0, numbers + 1))
        chosen = np.flatnonzero(places < self._most)
        # of two for one place the later one
        places, last = np.unique(places[chosen][::-1], return_index=True)
        rows = chosen[::-1][last]
        for kept, leaf in zip(jax.tree.leaves(self._kept), jax.tree.leaves(host), strict=True):
            kept[places] = leaf[rows]
        self._seen += count

    def batches(self) -> tuple[Batch, ...]:
        """What is kept, in batches."""
        count = min(self._seen, self._most)
        starts = range(0, count, _TOGETHER)
        return tuple(self._cut(start, min(start + _TOGETHER, count)) for start in starts)

    def _cut(self, start: int, stop: int) -> Any:
        return jax.tree.map(lambda leaf: leaf[start:stop], self._kept)
