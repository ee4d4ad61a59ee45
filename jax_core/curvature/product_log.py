"""Products of methods that go over the data many times, kept on disk one by one: a killed fit repeats none of them."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jax_core.curvature.data_sums import DataSums
from jax_core.data.checkpoint import Checkpoint
from jax_core.data.passes import LoaderPasses


class ProductLog:
    """A product that returns what it returned to an earlier process at the same call.

    The methods draw the same vectors from the same key, so the calls of a second process are those of the first.
    """

    def __init__(
        self,
        product: Callable[[Array], Array],
        sums: Callable[[], DataSums | None],
        passes: LoaderPasses,
        checkpoint: Checkpoint | None,
    ) -> None:
        """Wrap a product.

        Args:
            product: With a vector, or with a block of them.
            sums: What its first pass has added up.
            passes: The data, whose fingerprint is kept.
            checkpoint: Where results are kept; ``None`` for nowhere.
        """
        self._product, self._sums, self._passes, self._checkpoint = product, sums, passes, checkpoint
        self._calls, self._kept_sums, self._kept_mark = 0, DataSums(), []

    def __call__(self, vectors: Array) -> Array:
        """The product, or what was kept of it.

        Raises:
            ValueError: If the data are not those behind the results that were kept.
        """
        if self._checkpoint is None:
            return self._product(vectors)
        number, self._calls = self._calls, self._calls + 1
        kept = self._checkpoint.product(number)
        if kept is not None:
            (result, counted), self._kept_mark = kept
            self._kept_sums.restore(counted)
            return jnp.asarray(result, vectors.dtype)
        result = self._product(vectors)
        mark = list(self._passes.fingerprint or ())
        if self._kept_mark and mark != self._kept_mark:
            raise ValueError(
                "The checkpoint's products are of other data than the loader shows now. Delete its folder to start "
                "anew."
            )
        self._checkpoint.keep_product(number, [np.asarray(result), self.sums.as_array()], mark)
        return result

    @property
    def sums(self) -> DataSums:
        """What the first pass has added up, in this process or in an earlier one."""
        return self._sums() or self._kept_sums
