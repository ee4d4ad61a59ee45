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
    max_iterations: int = 100,
    tolerance: float = 1e-3,
    dtype: Any = jnp.float32,
) -> LowRank:
    r"""The largest ``rank`` eigenpairs, a block of ``rank`` products per iteration.

    It stops when all residuals $\lVert A u - s u \rVert$ are below the tolerance. Eigenvalues are then off by no more
    than that, by its square over the gap to the next ones where there is one.

    Args:
        block_mv: From ``(K, P)`` rows to the products with each of them.
        size: The dimension ``P``.
        rank: Eigenpairs sought, at most a fifth of ``size``.
        key: Random key of the first block.
        max_iterations: Iterations at most.
        tolerance: On the residuals, relative to the largest eigenvalue.
        dtype: Of the vectors.

    Raises:
        ValueError: If ``rank`` is out of range or the operator is indefinite.
        FloatingPointError: If a product is not finite.
        RuntimeError: If the iteration ends with residuals above ten times the tolerance.
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
    # scipy's tolerance is absolute; random vectors see no more than the largest eigenvalue
    scale = float(np.linalg.norm(product(start), axis=0).max()) / np.sqrt(size)
    if scale == 0.0:
        return low_rank(orthonormal_rows(jnp.asarray(start.T)), np.zeros(rank))
    with warnings.catch_warnings():  # scipy warns when the tolerance is not met, which is judged below
        warnings.simplefilter("ignore", UserWarning)
        found = scipy_lobpcg(product, start, largest=True, maxiter=max_iterations, tol=tolerance * scale)
    values, vectors = np.asarray(found[0], np.float64), np.asarray(found[1])
    _check_residuals(product(vectors) - vectors * values, float(np.abs(values).max()), tolerance, max_iterations)
    values = clip_spectrum(values, size, dtype)
    return low_rank(orthonormal_rows(jnp.asarray(vectors.T, dtype)), values)


def _check_residuals(residuals: np.ndarray, largest: float, tolerance: float, iterations: int) -> None:
    worst = float(np.linalg.norm(residuals, axis=0).max()) / max(largest, 1e-300)
    if not worst <= 10 * tolerance:
        raise RuntimeError(
            f"LOBPCG has not converged in {iterations} iterations: residuals are {worst:.1e} of the largest "
            f"eigenvalue, where tolerance={tolerance:.1e} was asked for. Use 'nystrom' or 'lanczos', a smaller rank, "
            "or more "
            "iterations."
        )
