"""Randomised Nystrom approximation (Tropp et al., 2017, arXiv:1706.05736; Frangella et al., 2021, arXiv:2110.02820)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float

from jax_core.lowrank.spectrum import (
    check_finite,
    check_rank,
    clip_spectrum,
    combine,
    cross_gram,
    low_rank,
    orthonormal_rows,
)
from jax_core.operators import LowRank
from jax_core.xla.precision import full_precision

BlockProduct = Callable[[Float[Array, "K P"]], Float[Array, "K P"]]


@full_precision
def nystrom(
    block_mv: BlockProduct,
    size: int,
    *,
    rank: int,
    key: Array,
    oversampling: int | None = None,
    passes: int = 1,
    dtype: Any = jnp.float32,
) -> LowRank:
    r"""Low rank from a few products with a block of random vectors.

    With $Y = A\Omega$ for an orthonormal random $\Omega$ of ``rank + oversampling`` columns the approximation is
    $Y (\Omega^\top Y)^{-1} Y^\top$, truncated to ``rank`` eigenpairs: one product with a block, hence one pass over
    the data. Every further pass replaces $\Omega$ by an orthonormal basis of $Y$ (subspace iteration). The result is
    never larger than $A$.

    Args:
        block_mv: From ``(K, P)`` rows to the products with each of them.
        size: The dimension ``P``.
        rank: Eigenpairs returned.
        key: Random key.
        oversampling: Extra vectors; a tenth of the rank and at least 10 by default.
        passes: Products with a block.
        dtype: Of the vectors.

    Raises:
        ValueError: If ``rank`` is not between 1 and ``size``, ``passes`` is below 1 or the operator is indefinite.
        FloatingPointError: If a product is not finite.
    """
    check_rank(rank, size)
    if passes < 1:
        raise ValueError(f"passes={passes}: a Nystrom approximation takes at least one.")
    width = min(size, rank + (max(10, rank // 10) if oversampling is None else oversampling))
    basis = orthonormal_rows(jax.random.normal(key, (width, size), dtype) / np.sqrt(size))
    image = _finite(block_mv(basis))
    for _ in range(passes - 1):
        basis = _orthonormal_range(image)
        image = _finite(block_mv(basis))
    return _from_sketch(basis, image, rank)


def _finite(image: Float[Array, "K P"]) -> Float[Array, "K P"]:
    check_finite(np.asarray(jnp.abs(image).max()), "The sketch")
    return image


def _orthonormal_range(image: Float[Array, "K P"]) -> Float[Array, "K P"]:
    """An orthonormal basis that spans the rows, also where they are numerically dependent."""
    values, vectors = scipy.linalg.eigh(cross_gram(image, image))
    scales = np.sqrt(np.maximum(values, 1e-14 * max(values[-1], 1e-300)))
    basis = combine(jnp.asarray(vectors.T / scales[:, None]), image)
    basis, _ = jnp.linalg.qr(basis.T)
    return basis.T


def _from_sketch(basis: Float[Array, "K P"], image: Float[Array, "K P"], rank: int) -> LowRank:
    core = cross_gram(basis, image)
    core = (core + core.T) / 2
    values, vectors = scipy.linalg.eigh(core)
    values = clip_spectrum(values, basis.shape[1], image.dtype)
    # The pseudo-inverse root drops what rounding cannot tell from zero: those directions carry no curvature.
    kept = values > 10 * float(jnp.finfo(image.dtype).eps) * values[-1]
    root = vectors[:, kept] / np.sqrt(values[kept])
    gram = cross_gram(image, image)
    squares, rotation = scipy.linalg.eigh(root.T @ gram @ root)
    squares, rotation = squares[::-1][:rank], rotation[:, ::-1][:, :rank]
    found = squares > 0
    squares, rotation = squares[found], rotation[:, found]
    coefficients = (root @ rotation / np.sqrt(squares)).T
    rows = combine(jnp.asarray(coefficients), image)
    return low_rank(orthonormal_rows(rows), squares)
