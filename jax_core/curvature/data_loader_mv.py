"""Products summed over a loader, which is proved to show the same samples on every pass."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp

from jax_core.data import trees
from jax_core.data.passes import Cache, LoaderPasses
from jax_core.types import Data
from jax_core.xla.compiled import jit_closure

Reduce = Callable[[Any, Any], tuple[Any, Any]]


def reduce_add(res_new: Any, state: Any = None) -> tuple[Any, Any]:
    """Sum over batches: ``(running total, state)``."""
    total = res_new if state is None else trees.add(state, res_new)
    return total, total


def reduce_concat(res_new: Any, state: Any = None) -> tuple[Any, Any]:
    """Concatenate over batches along the leading axis."""
    joined = res_new if state is None else jax.tree.map(lambda a, b: jnp.concatenate([a, b]), state, res_new)
    return joined, joined


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
