"""Lanczos with full reorthogonalisation (Golub and Van Loan, Matrix Computations, 4th ed., section 10.3)."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float
from tqdm.auto import tqdm

from jax_core.data.trees import flattener
from jax_core.lowrank.spectrum import check_finite, check_rank, clip_spectrum, combine, flat_size, low_rank
from jax_core.operators import LowRank
from jax_core.types import MatVec
from jax_core.xla.compiled import jit_closure
from jax_core.xla.precision import full_precision


@full_precision
def lanczos(
    mv: MatVec,
    layout: Any,
    *,
    rank: int,
    key: Array,
    dtype: Any = None,
    mv_jit: bool = True,
    progress: bool = False,
) -> LowRank:
    r"""The leading ``rank`` Ritz pairs of ``rank + 1`` steps of Lanczos: $A \approx U \operatorname{diag}(s) U^\top$.

    One step more than pairs: the first direction has a part outside of the range of a matrix of that very rank, which
    would cost one of its eigenpairs.

    The loop runs on the host around one compiled product, and every new vector is made orthogonal to all earlier ones
    by two blocked products. The tridiagonal eigenproblem is solved in float64. Ritz values never exceed the largest
    eigenvalue; the last ones are far from converged unless ``rank`` nears the number of distinct eigenvalues. On an
    invariant subspace the iteration goes on from a new random direction, so a full rank gives the full spectrum.

    Args:
        mv: Product with pytrees like ``layout``, or with flat vectors if ``layout`` is an int or a vector.
        layout: Such a pytree, or the dimension.
        rank: Ritz pairs returned.
        key: Random key of the first direction.
        dtype: Of the vectors; by default that of the layout's leaves.
        mv_jit: Compile the product. A product that reads data, or compiles its own pieces, is called as it is.
        progress: Show a progress bar.

    Raises:
        ValueError: If ``rank`` is not between 1 and the dimension, or the operator is indefinite.
        FloatingPointError: If a product is not finite.

    Example:
        >>> largest = lanczos(lambda v: jnp.arange(1.0, 6.0) * v, 5, rank=5, key=jax.random.key(0)).s
        >>> np.round(np.sort(largest), 3).tolist()
        [1.0, 2.0, 3.0, 4.0, 5.0]
    """
    size = flat_size(layout)
    check_rank(rank, size)
    product, dtype = _flat_product(jit_closure(mv) if mv_jit else mv, layout, dtype)
    steps = min(rank + 1, size)
    diagonal, off_diagonal = np.zeros(steps), np.zeros(steps - 1)
    basis = _zeros_beside(layout, (steps, size), dtype)
    roundoff = 10 * float(jnp.finfo(dtype).eps)
    vector, scale = _random_unit(key, 0, basis), 0.0
    for step in tqdm(range(steps), desc="Lanczos", unit="product", disable=not progress, leave=False, delay=1):
        basis = _store(basis, vector, step)
        image = product(vector)
        residual, projection, norm = _orthogonalise(basis, image, vector)
        diagonal[step], beta = float(projection), float(norm)
        check_finite(np.array([diagonal[step], beta]), f"Product {step}")
        scale = max(scale, abs(diagonal[step]), beta)
        if step + 1 == steps:
            break
        if beta > roundoff * scale:
            off_diagonal[step], vector = beta, residual / norm
        else:
            vector = _random_unit(key, step + 1, basis)
    values, vectors = scipy.linalg.eigh_tridiagonal(diagonal, off_diagonal)
    values = clip_spectrum(values, size, dtype)[-rank:]
    return low_rank(combine(jnp.asarray(vectors[:, -rank:].T, dtype), basis), values)


def _flat_product(mv: MatVec, layout: Any, dtype: Any) -> tuple[MatVec, Any]:
    """The product on flat vectors, and their dtype."""
    if isinstance(layout, int):
        return mv, jnp.result_type(float) if dtype is None else dtype
    dtype = jnp.result_type(*jax.tree.leaves(layout)) if dtype is None else dtype
    if isinstance(layout, jax.Array) and layout.ndim == 1:
        return mv, dtype
    flatten, unflatten = (jax.jit(f) for f in flattener(layout))
    return lambda v: flatten(mv(unflatten(v))), dtype


def _zeros_beside(layout: Any, shape: tuple[int, int], dtype: Any) -> Array:
    """Zeros on the layout's device: vectors of one kind from the first step on, so that nothing is compiled twice."""
    leaves = [] if isinstance(layout, int) else jax.tree.leaves(layout)
    return jnp.zeros_like(leaves[0], dtype, shape) if leaves else jnp.zeros(shape, dtype)


@jax.jit
def _orthogonalise(
    basis: Float[Array, "R P"], image: Float[Array, " P"], vector: Float[Array, " P"]
) -> tuple[Array, Array, Array]:
    """Residual of the image against the basis, its projection on ``vector``, its norm.

    Rows not yet found are zero and gone through all the same: cutting the basis costs a copy, as much as it saves.
    """
    projection = vector @ image
    for _ in range(2):  # twice is enough (Giraud et al., 2005, doi:10.1007/s00211-005-0615-4)
        image = image - (basis @ image) @ basis  # not basis.T @ (...): on the CPU that takes five times as long
    return image, projection, jnp.linalg.norm(image)


@partial(jax.jit, donate_argnums=0)
def _store(basis: Array, vector: Array, step: Array | int) -> Array:
    return basis.at[step].set(vector)


def _random_unit(key: Array, step: int, basis: Float[Array, "R P"]) -> Float[Array, " P"]:
    """A random direction orthogonal to the basis; drawn on the host, where no program has to be compiled for it."""
    seed = [*np.asarray(jax.random.key_data(key)).ravel().tolist(), step]
    noise = np.random.default_rng(seed).standard_normal(basis.shape[1]).astype(basis.dtype)
    direction = jax.device_put(noise / np.linalg.norm(noise), basis.sharding)
    residual, _, norm = _orthogonalise(basis, direction, direction)
    return residual / norm
