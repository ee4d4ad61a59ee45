"""Block Lanczos with full reorthogonalisation (Golub and Underwood, 1977, doi:10.1016/B978-0-12-587260-7.50018-2)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float
from tqdm.auto import tqdm

from jax_core.lowrank.nystrom import BlockProduct
from jax_core.lowrank.spectrum import check_finite, check_rank, clip_spectrum, combine, cross_gram, low_rank
from jax_core.operators import LowRank
from jax_core.xla.precision import full_precision


@full_precision
def block_lanczos(
    block_mv: BlockProduct,
    size: int,
    *,
    rank: int,
    key: Array,
    block_size: int = 8,
    dtype: Any = jnp.float32,
    progress: bool = False,
) -> LowRank:
    r"""Ritz pairs from the block Krylov space of ``rank`` vectors, ``block_size`` of them a pass over the data.

    A block shares one linearisation of the network and one reading of the data, so ``rank`` vectors take
    ``rank / block_size`` passes; for as many vectors the space reaches less deep than that of :func:`lanczos`.

    Args:
        block_mv: From ``(K, P)`` rows to the products with each of them.
        size: The dimension ``P``.
        rank: Vectors in the space, and Ritz pairs returned.
        key: Random key of the first block.
        block_size: Vectors a pass.
        dtype: Of the vectors.
        progress: Show a progress bar.

    Raises:
        ValueError: If ``rank`` is out of range, ``block_size`` is below one, or the operator is indefinite.
        FloatingPointError: If a product is not finite.
    """
    check_rank(rank, size)
    if block_size < 1:
        raise ValueError(f"block_size={block_size}: give at least one vector.")
    basis = jnp.zeros((0, size), dtype)
    core = np.zeros((rank, rank))
    starts = range(0, rank, block_size)
    seed = np.asarray(jax.random.key_data(key)).ravel().tolist()
    candidate = _noise(seed, min(block_size, rank), size, dtype)
    for start in tqdm(starts, desc="Block Lanczos", unit="pass", disable=not progress, leave=False, delay=1):
        width = min(block_size, rank - start)
        block = _new_directions(candidate[:width], basis, [*seed, start])
        basis = jnp.concatenate([basis, block])
        candidate = block_mv(block)
        stop = basis.shape[0]
        core[:stop, start:stop] = cross_gram(basis, candidate)
        check_finite(core[:stop, start:stop], f"The product of block {start // block_size}")
        core[start:stop, :stop] = core[:stop, start:stop].T
    values, vectors = scipy.linalg.eigh((core + core.T) / 2)
    values = clip_spectrum(values, size, dtype)
    return low_rank(combine(jnp.asarray(vectors.T, dtype), basis), values)


def _noise(seed: list[int], count: int, size: int, dtype: Any) -> Float[Array, "K P"]:
    return jnp.asarray(np.random.default_rng(seed).standard_normal((count, size)) / np.sqrt(size), dtype)


def _new_directions(candidate: Float[Array, "K P"], basis: Float[Array, "R P"], seed: list[int]) -> Float[Array, "K P"]:
    """Orthonormal rows, orthogonal to the basis, that span the candidates; random ones where those are used up."""
    before = np.linalg.norm(np.asarray(candidate, np.float64), axis=1)
    block = _project(candidate, basis)
    left = np.linalg.norm(np.asarray(block, np.float64), axis=1)
    used_up = left <= 100 * float(jnp.finfo(candidate.dtype).eps) * np.maximum(before, before.max(initial=0.0))
    noise = _project(_noise([*seed, 1], len(left), candidate.shape[1], candidate.dtype), basis)
    block = jnp.where(jnp.asarray(used_up)[:, None], noise, block)
    block = block / jnp.linalg.norm(block, axis=1, keepdims=True)
    # QR leaves dependent rows with directions of its own choice, which a second projection cleans
    block = jnp.linalg.qr(block.T)[0].T
    return jnp.linalg.qr(_project(block, basis).T)[0].T


def _project(block: Float[Array, "K P"], basis: Float[Array, "R P"]) -> Float[Array, "K P"]:
    for _ in range(2):
        block = block - (block @ basis.T) @ basis
    return block
