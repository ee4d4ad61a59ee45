"""Largest eigenpairs by LOBPCG (Knyazev, 2001, doi:10.1137/S1064827500366124), scipy's implementation."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from scipy.sparse.linalg import lobpcg as scipy_lobpcg

from jax_core.lowrank.nystrom import BlockProduct
from jax_core.lowrank.spectrum import check_finite, check_rank, clip_spectrum, low_rank, orthonormal_rows
from jax_core.operators import LowRank
from jax_core.xla.precision import full_precision


@full_precision
def lobpcg(
    block_mv: BlockProduct,
    size: int,
    *,
    rank: int,
    key: Array,
    max_iterations: int = 20,
    tolerance: float | None = None,
    dtype: Any = jnp.float32,
) -> LowRank:
    """The largest ``rank`` eigenpairs, a block of ``rank`` products per iteration.

    Args:
        block_mv: From ``(K, P)`` rows to the products with each of them.
        size: The dimension ``P``.
        rank: Eigenpairs sought, at most a fifth of ``size``.
        key: Random key of the first block.
        max_iterations: Iterations at most.
        tolerance: On the residuals; scipy's default for the type otherwise.
        dtype: Of the vectors.

    Raises:
        ValueError: If ``rank`` is out of range or the operator is indefinite.
        FloatingPointError: If a product is not finite.
    """
    check_rank(rank, size)
    if 5 * rank > size:
        raise ValueError(
            f"LOBPCG finds few eigenpairs of a large matrix: rank={rank} is more than a fifth of {size} parameters. "
            "Use 'lanczos', 'nystrom' or 'full'."
        )

    def product(block: np.ndarray) -> np.ndarray:
        rows = block.reshape(size, -1).T
        whole = np.pad(rows, ((0, rank - len(rows)), (0, 0)))  # scipy drops what converged: one program for all widths
        image = np.asarray(block_mv(jnp.asarray(whole, dtype)))[: len(rows)]
        check_finite(image, "A product")
        return image.T

    start = np.asarray(jax.random.normal(key, (size, rank), dtype))
    with warnings.catch_warnings():  # scipy warns when the tolerance is not met; the iteration bound is the caller's
        warnings.simplefilter("ignore", UserWarning)
        values, vectors = scipy_lobpcg(product, start, largest=True, maxiter=max_iterations, tol=tolerance)[:2]
    values = clip_spectrum(np.asarray(values, np.float64), size, dtype)
    return low_rank(orthonormal_rows(jnp.asarray(vectors.T, dtype)), values)
