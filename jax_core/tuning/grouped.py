r"""A curvature's spectrum in groups, so that one pass of Jacobians serves every prior precision.

With $A = Q\,[\operatorname{diag}(d) + U S U^\top]\,Q^\top$ a covariance under the precision $\tau$ is
$\tilde J \Delta \tilde J^\top - \tilde J \Delta U S^{1/2} M^{-1} S^{1/2} U^\top \Delta \tilde J^\top$ with
$\Delta = (d + \tau)^{-1}$ and $M = I + S^{1/2} U^\top \Delta U S^{1/2}$: $\tau$ stands between the rows
$\tilde J = J Q$ and themselves. Where $d$ is one number for a group of coordinates it stands outside, and the products
of each group are made once. Groups are neighbours in the sorted spectrum, the largest alone, the others of growing size
up to a fortieth of all, each with the mean of its $d$.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_core.gradients.factored import grams
from jax_core.operators import BlockDiagonal, BlockLowRank, Projection
from jax_core.predictive import GaussianOutputs
from jax_core.types import pytree
from jax_core.xla.precision import full_precision

_SHARE = 40  # of all coordinates, in a group at most
_GROWTH = 1.5  # from a group to the next


def group_sizes(size: int, share: int | None = None) -> tuple[int, ...]:
    """Sizes of the groups from the largest value on, a ``share``-th at most; they depend on the number alone."""
    most, found, left = max(1, size // (share or _SHARE)), [], size
    width = 1.0
    while left:
        found.append(min(left, int(width)))
        left -= found[-1]
        width = min(width * _GROWTH, most)
    return tuple(found)


class Run(NamedTuple):
    """Neighbouring groups of one size: from where on, how many, how large. They meet rows in one product."""

    start: int
    groups: int
    width: int

    def cut(self, array: Array, axis: int) -> Array:
        """Its part of a sorted axis, which becomes two: groups, and the coordinates in each."""
        part = jax.lax.slice_in_dim(array, self.start, self.start + self.groups * self.width, axis=axis)
        axis %= array.ndim
        return part.reshape(*array.shape[:axis], self.groups, self.width, *array.shape[axis + 1 :])


def runs_of(sizes: tuple[int, ...]) -> list[Run]:
    """Groups of such sizes, those of one size together, so that a program has few products."""
    found, start = [], 0
    for width, same in itertools.groupby(sizes):
        groups = len(list(same))
        found.append(Run(start, groups, width))
        start += groups * width
    return found


def column_grams(sizes: tuple[int, ...], columns: Float[Array, "P R"]) -> Float[Array, "G R R"]:
    """Products of each group's rows of sorted columns with themselves."""
    parts = [run.cut(columns, 0) for run in runs_of(sizes)]
    return jnp.concatenate([jnp.swapaxes(part, 1, 2) @ part for part in parts])


def group_products(
    sizes: tuple[int, ...], columns: Float[Array, "P R"] | None, turned: Float[Array, "B C P"]
) -> tuple[Float[Array, "G B C C"], Float[Array, "G B C R"] | None]:
    """Products of each group's part of sorted rows with themselves, and with the columns if there are any."""
    runs, outputs = runs_of(sizes), turned.shape[:-1]
    parts = [jnp.moveaxis(run.cut(turned, -1), -2, 0) for run in runs]  # (groups, B, C, width) each
    own = jnp.concatenate([grams(part) for part in parts])
    if columns is None:
        return own, None
    pairs = zip(parts, runs, strict=True)
    met = [part.reshape(run.groups, -1, run.width) @ run.cut(columns, 0) for part, run in pairs]
    return own, jnp.concatenate(met).reshape(own.shape[0], *outputs, -1)


@pytree
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

    @full_precision
    def log_det_ratio(self, precision: Any) -> Float[Array, ""]:
        r"""$\log\det(I + A / \tau)$; the weights' share of it is exact."""
        return _log_det_ratio(self, jnp.asarray(precision, self.weights.dtype))


@partial(jax.jit, static_argnames="sizes")
def _grouped(projection: Projection, order: Array, sizes: tuple[int, ...]) -> GroupedSpectrum:
    assert projection.weights is not None
    weights = projection.weights[order]
    runs = runs_of(sizes)
    values = jnp.concatenate([run.cut(weights, 0).mean(1) for run in runs])
    if projection.columns is None or projection.values is None:
        return GroupedSpectrum(order, values, None, None, weights, sizes)
    columns = projection.columns[order] * jnp.sqrt(projection.values)
    return GroupedSpectrum(order, values, columns, column_grams(sizes, columns), weights, sizes)


def group_bounds(sizes: tuple[int, ...]) -> list[tuple[int, int]]:
    """Where pieces of such sizes begin and end, one after the other."""
    return list(itertools.pairwise(np.cumsum([0, *sizes]).tolist()))


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


@pytree
@dataclass(frozen=True)
class GroupedGrid:
    r"""A grouped spectrum under every precision of a grid.

    Attributes:
        spectrum: The groups.
        scales: $1 / (d_g + \tau)$.
        roots: $L^{-\top}$ with $L L^\top = M$; ``None`` without a low rank.
    """

    spectrum: GroupedSpectrum
    scales: Float[Array, "T G"]
    roots: Float[Array, "T R R"] | None

    @classmethod
    def of(cls, grid: Float[Array, " T"], projection: Projection) -> GroupedGrid:
        """Group the weights of a projection, and factorise what lies between the columns for each precision."""
        spectrum = GroupedSpectrum.of(projection)
        scales = 1 / (spectrum.values + grid[:, None])
        return cls(spectrum, scales, None if spectrum.grams is None else _roots(scales, spectrum.grams))


@jax.jit
def _roots(scales: Float[Array, "T G"], of_columns: Float[Array, "G R R"]) -> Float[Array, "T R R"]:
    identity = jnp.eye(of_columns.shape[-1], dtype=of_columns.dtype)
    factors = jnp.linalg.cholesky(jnp.einsum("tg,grs->trs", scales, of_columns) + identity)
    return jax.vmap(lambda factor: jax.scipy.linalg.solve_triangular(factor, identity, lower=True).T)(factors)


def covariances(
    finish: Callable[[GaussianOutputs], Any],
    known: GroupedGrid,
    outputs: Float[Array, "B C"],
    rows: Float[Array, "B C P"],
) -> Any:
    """``finish`` of the outputs under every precision, axes ``(B, T)`` first, from rows along the eigenvectors."""
    spectrum = known.spectrum
    own, inner = group_products(spectrum.sizes, spectrum.columns, rows[..., spectrum.order])
    # No loop over the precisions: XLA's CPU backend takes ten times as long for one.
    covariance = jnp.tensordot(known.scales, own, 1)  # (T, B, C, C)
    if inner is not None and known.roots is not None:
        inner = inner.reshape(inner.shape[0], -1, inner.shape[-1])  # (G, B * C, R)
        halves = jnp.tensordot(known.scales, inner, 1) @ known.roots  # (T, B * C, R)
        covariance = covariance - grams(halves.reshape(-1, *outputs.shape, halves.shape[-1]))
    return jax.vmap(lambda of_one: finish(GaussianOutputs(outputs, of_one)), out_axes=1)(covariance)
