r"""A curvature's spectrum in groups, so that one pass of Jacobians serves every prior precision.

With $A = Q\,[\operatorname{diag}(d) + U S U^\top]\,Q^\top$ a covariance under the precision $\tau$ is
$\tilde J \Delta \tilde J^\top - \tilde J \Delta U S^{1/2} M^{-1} S^{1/2} U^\top \Delta \tilde J^\top$ with
$\Delta = (d + \tau)^{-1}$ and $M = I + S^{1/2} U^\top \Delta U S^{1/2}$: $\tau$ stands between the rows
$\tilde J = J Q$ and themselves. Where $d$ is one number for a group of coordinates it stands outside, and the products
of each group are made once. Groups are neighbours in the sorted spectrum, the largest alone, the others of growing size
up to a hundred-and-twentieth of all, each with the mean of its $d$.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_core.operators import BlockDiagonal, BlockLowRank, Projection
from jax_core.predictive import GaussianOutputs
from jax_core.xla.precision import full_precision

_SHARE = 120  # of all coordinates, in a group at most
_GROWTH = 1.25  # from a group to the next


def group_sizes(size: int) -> tuple[int, ...]:
    """Sizes of the groups from the largest value on; they depend on the number of values alone."""
    most, found, left = max(1, size // _SHARE), [], size
    width = 1.0
    while left:
        found.append(min(left, int(width)))
        left -= found[-1]
        width = min(width * _GROWTH, most)
    return tuple(found)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GroupedSpectrum:
    """The projection of a curvature with its weights in groups.

    Attributes:
        order: Coordinates along the eigenvectors, those of the largest weight first.
        values: The mean weight of each group.
        columns: $U S^{1/2}$, in that order; ``None`` without a low rank.
        grams: Of each group's rows of the columns.
        weights: All, sorted.
        sizes: Of the groups.
    """

    order: Int[Array, " P"]
    values: Float[Array, " G"]
    columns: Float[Array, "P R"] | None
    grams: Float[Array, "G R R"] | None
    weights: Float[Array, " P"]
    sizes: tuple[int, ...] = field(metadata={"static": True})

    @classmethod
    def of(cls, projection: Projection) -> GroupedSpectrum:
        """Group the weights of a projection, one for each coordinate."""
        assert projection.weights is not None
        order = jnp.argsort(-projection.weights)
        sizes = group_sizes(order.shape[0])
        return _grouped(projection, order, sizes)

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """Where groups begin and end."""
        ends = np.cumsum([0, *self.sizes]).tolist()
        return list(itertools.pairwise(ends))

    @full_precision
    def log_det_ratio(self, precision: Any) -> Float[Array, ""]:
        r"""$\log\det(I + A / \tau)$; the weights' share of it is exact."""
        return _log_det_ratio(self, jnp.asarray(precision, self.weights.dtype))


@partial(jax.jit, static_argnames="sizes")
def _grouped(projection: Projection, order: Array, sizes: tuple[int, ...]) -> GroupedSpectrum:
    assert projection.weights is not None
    weights = projection.weights[order]
    ends = np.cumsum([0, *sizes]).tolist()
    bounds = list(itertools.pairwise(ends))
    values = jnp.stack([weights[a:b].mean() for a, b in bounds])
    if projection.columns is None or projection.values is None:
        return GroupedSpectrum(order, values, None, None, weights, sizes)
    columns = projection.columns[order] * jnp.sqrt(projection.values)
    grams = jnp.stack([columns[a:b].T @ columns[a:b] for a, b in bounds])
    return GroupedSpectrum(order, values, columns, grams, weights, sizes)


@jax.jit
def _log_det_ratio(grouped: GroupedSpectrum, precision: Array) -> Array:
    total = jnp.log1p(grouped.weights / precision).sum()
    if grouped.grams is None:
        return total
    inner = jnp.einsum("g,grs->rs", 1 / (grouped.values + precision), grouped.grams)
    return total + jnp.linalg.slogdet(inner + jnp.eye(inner.shape[0], dtype=inner.dtype))[1]


def is_grouped(curvature: Any) -> TypeGuard[BlockDiagonal | BlockLowRank]:
    """Whether a curvature's spectrum is taken in groups: that of blocks."""
    return isinstance(curvature, BlockDiagonal | BlockLowRank)


def blocks_of(curvature: BlockDiagonal | BlockLowRank) -> tuple[Any, ...]:
    """Its blocks."""
    return curvature.blocks.parts if isinstance(curvature, BlockLowRank) else curvature.parts


def covariances(
    finish: Callable[[GaussianOutputs], Any],
    grid: Float[Array, " T"],
    grouped: GroupedSpectrum,
    outputs: Float[Array, "B C"],
    rows: Float[Array, "B C P"],
) -> Any:
    """``finish`` of the outputs under every precision, axes ``(B, T)`` first, from rows along the eigenvectors."""
    turned = rows[..., grouped.order]
    parts = [turned[..., a:b] for a, b in grouped.bounds]
    own = jnp.stack([part @ jnp.swapaxes(part, -1, -2) for part in parts], axis=1)  # (B, G, C, C)
    inner = None
    if grouped.columns is not None:
        inner = jnp.stack([p @ grouped.columns[a:b] for p, (a, b) in zip(parts, grouped.bounds, strict=True)], axis=1)

    def at(precision: Array) -> Any:
        scale = 1 / (grouped.values + precision)
        covariance = jnp.einsum("g,bgcd->bcd", scale, own)
        if inner is not None and grouped.grams is not None:
            small = jnp.einsum("g,grs->rs", scale, grouped.grams)
            factor = jnp.linalg.cholesky(small + jnp.eye(small.shape[0], dtype=small.dtype))
            met = jnp.einsum("g,bgcr->bcr", scale, inner)
            solved = jax.scipy.linalg.solve_triangular(factor, met.reshape(-1, met.shape[-1]).T, lower=True)
            half = solved.T.reshape(met.shape)
            covariance = covariance - half @ jnp.swapaxes(half, -1, -2)
        return finish(GaussianOutputs(outputs, covariance))

    found = jax.lax.map(at, grid)
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), found)
