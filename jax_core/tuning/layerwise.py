r"""A prior precision for each parameter tensor by gradients of a held-out loss, from one pass of Jacobians.

With $A = Q\,[\operatorname{diag}(d) + U S U^\top]\,Q^\top$, $Q$ block by block over the tensors, a precision $\tau_l$
of each tensor commutes with its block of $Q$: covariances are those of :mod:`jax_core.tuning.grouped` with groups that
lie within a tensor and $\Delta = (d_g + \tau_{l(g)})^{-1}$. The products of each group are made once for each held-out
sample; a step of the search multiplies small matrices.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import Array, Float

from jax_core.data.batches import Batch
from jax_core.gradients.factored import grams
from jax_core.gradients.jacobian_maps import map_rotated
from jax_core.gradients.subspace import Subspace
from jax_core.operators import BlockDiagonal, BlockLowRank, Dense, Diagonal, LowRank, Operator, Projection, Symmetric
from jax_core.tuning.collect import flat_targets
from jax_core.tuning.grouped import column_grams, group_bounds, group_products, group_sizes
from jax_core.types import ModelFn, Params, pytree
from jax_core.xla.chunks import example_shapes
from jax_core.xla.compiled import as_jit_argument
from jax_core.xla.precision import full_precision

_BYTES = 2**29  # of the products that are kept
_SHARES = (40, 20, 10, 5)  # groups of equal size in a tensor, at least; fewer where more do not fit
_STEPS = 30
_REACH = math.log(1e3)  # of a precision, from where it begins


@pytree
@dataclass(frozen=True)
class LayerGroups:
    """A projection with the coordinates of each tensor in groups.

    Attributes:
        order: Coordinates along the eigenvectors, tensor after tensor, those of the largest weight first.
        values: The mean weight of each group.
        layers: The tensor of each group.
        columns: $U S^{1/2}$, in that order; ``None`` without a low rank.
        grams: Of each group's rows of the columns.
        sizes: Of the groups.
    """

    order: Any
    values: Float[Array, " G"]
    layers: Any
    columns: Float[Array, "P R"] | None
    grams: Float[Array, "G R R"] | None
    sizes: tuple[int, ...] = field(metadata={"static": True})

    @classmethod
    def of(cls, leaves: tuple[int, ...], share: int, projection: Projection) -> LayerGroups:
        """Group the weights of a projection within tensors of so many entries."""
        weights, within = _weights(projection, leaves), group_bounds(leaves)
        order = np.concatenate([a + np.argsort(-weights[a:b]) for a, b in within])
        groups = [_sizes(weights[a:b], share) for a, b in within]
        sizes = tuple(itertools.chain.from_iterable(groups))
        bounds = group_bounds(sizes)
        values = jnp.asarray(np.array([weights[order[a:b]].mean() for a, b in bounds]))
        layers = np.repeat(np.arange(len(leaves)), [len(some) for some in groups])
        if projection.columns is None or projection.values is None:
            return cls(jnp.asarray(order), values, jnp.asarray(layers), None, None, sizes)
        columns = projection.columns[order] * jnp.sqrt(jnp.maximum(projection.values, 0.0))
        return cls(jnp.asarray(order), values, jnp.asarray(layers), columns, column_grams(sizes, columns), sizes)


def _weights(projection: Projection, leaves: tuple[int, ...]) -> np.ndarray:
    """One for each coordinate."""
    return np.broadcast_to(np.asarray(0.0 if projection.weights is None else projection.weights), sum(leaves))


def _sizes(weights: np.ndarray, share: int) -> tuple[int, ...]:
    return group_sizes(weights.size, share) if np.ptp(weights) > 0 else (weights.size,)


class Products(NamedTuple):
    """What covariances of held-out positions are made of, under any precisions.

    Attributes:
        mean: The network's outputs.
        target: Of each position.
        own: Rows of a group with themselves.
        inner: Rows of a group with the columns; ``None`` without a low rank.
    """

    mean: Float[Array, "N K"]
    target: Array
    own: Float[Array, "N G K K"]
    inner: Float[Array, "N G K R"] | None


def covariances(groups: LayerGroups, products: Products, precisions: Float[Array, " L"]) -> Float[Array, "N K K"]:
    """Of positions under a precision for each tensor. Traceable."""
    scale = 1 / (groups.values + precisions[groups.layers])
    covariance = jnp.einsum("g,ngkl->nkl", scale, products.own)
    if groups.grams is None or products.inner is None:
        return covariance
    between = jnp.einsum("g,grs->rs", scale, groups.grams)
    factor = jnp.linalg.cholesky(between + jnp.eye(between.shape[0], dtype=between.dtype))
    inner = jnp.einsum("g,ngkr->nkr", scale, products.inner)
    half = jax.scipy.linalg.solve_triangular(factor, inner.reshape(-1, inner.shape[-1]).T, lower=True).T
    return covariance - grams(half.reshape(inner.shape))


def layer_products(
    model_fn: ModelFn, mean: Params, curvature: Operator, batches: Iterable[Batch], *, together: int
) -> tuple[LayerGroups, Products]:
    """The groups of a curvature, and the products of held-out samples with them.

    Args:
        model_fn: For one example.
        mean: The parameters.
        curvature: Scaled by noise and temperature.
        batches: The held-out data, read once if they are kept.
        together: Outputs of a position.

    Raises:
        TypeError: For a structure whose covariance is no function of such products.
        ValueError: If the products do not fit into memory.
    """
    leaves = tuple(int(jnp.size(leaf)) for leaf in jax.tree.leaves(mean))
    projection = _projection(curvature, leaves)
    held = list(batches)
    count = sum(jax.tree.leaves(batch.input)[0].shape[0] for batch in held)
    outputs = math.prod(jax.eval_shape(model_fn, example_shapes(held[0].input), mean).shape)
    share = _fitting(projection, leaves, count * outputs, together)
    made: list[LayerGroups] = []

    def prepared(ordered: Projection) -> LayerGroups:
        made.append(LayerGroups.of(leaves, share, ordered))
        return made[-1]

    run = map_rotated(model_fn, mean, Subspace(projection), prepared, _Kept(together))
    parts = [(*run(batch.input), flat_targets(batch.target, together)) for batch in held]
    centre, own, inner = (
        None if some[0] is None else jnp.concatenate([part.reshape(-1, *part.shape[2:]) for part in some])
        for some in list(zip(*parts, strict=True))[:3]
    )
    assert centre is not None and own is not None
    target = jnp.concatenate([part[3] for part in parts])
    return made[-1], Products(centre, target, own, inner)


@pytree
@dataclass(frozen=True)
class _Kept:
    """Outputs and products of rows with each group, by positions."""

    together: int = field(metadata={"static": True})

    def __call__(self, groups: LayerGroups, outputs: Array, rows: Array) -> tuple[Array, Array, Array | None]:
        turned = rows[..., groups.order].reshape(-1, self.together, rows.shape[-1])  # (b positions, K, P)
        products = group_products(groups.sizes, groups.columns, turned)
        own, inner = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), products)  # (b positions, G, ...)
        found = outputs.reshape(-1, self.together), own, inner
        return jax.tree.map(lambda leaf: leaf.reshape(outputs.shape[0], -1, *leaf.shape[1:]), found)


def _projection(curvature: Operator, leaves: tuple[int, ...]) -> Projection:
    """A curvature whose eigenvectors stay within tensors, with what does not as columns."""
    if isinstance(curvature, Symmetric):
        curvature = curvature.eigenpairs
    match curvature:
        case BlockDiagonal() | BlockLowRank():
            parts = curvature.parts if isinstance(curvature, BlockDiagonal) else curvature.blocks.parts
            if tuple(part.size for part in parts) == leaves:
                return curvature.projection()
        case Diagonal():
            parts = tuple(Diagonal(curvature.diagonal[a:b]) for a, b in group_bounds(leaves))
            return BlockDiagonal(parts).projection()
        case LowRank():
            return Projection(None, jnp.zeros(curvature.size, curvature.U.dtype), curvature.U, curvature.s)
        case Dense():
            values = jnp.zeros(curvature.size, curvature.eigenvectors.dtype)
            return Projection(None, values, curvature.eigenvectors, curvature.eigenvalues)
    raise TypeError(
        "A prior precision per layer from held-out data needs a curvature of blocks, one for each parameter tensor, or "
        f"of low rank, not {type(curvature).__name__}. Choose another structure, or prior_structure='scalar'."
    )


def _fitting(projection: Projection, leaves: tuple[int, ...], outputs: int, together: int) -> int:
    """How finely spectra are taken, so that what is kept of so many outputs fits."""
    rank = 0 if projection.columns is None else projection.columns.shape[1]
    weights, needed = _weights(projection, leaves), 0
    for share in _SHARES:
        groups = sum(len(_sizes(weights[a:b], share)) for a, b in group_bounds(leaves))
        needed = 4 * groups * (outputs * (together + rank) + rank**2)
        if needed <= _BYTES:
            return share
    raise ValueError(
        f"A prior precision per layer would keep {needed / 2**30:.1f} GiB of products of the held-out data with a "
        f"curvature of rank {rank}. Give fewer held-out samples, a lower rank, or prior_structure='scalar'."
    )


class Refined(NamedTuple):
    """Where a search by gradients ended.

    Attributes:
        precisions: One for each tensor.
        other: The other hyperparameter.
        start: The loss at the start.
        loss: The smallest loss.
    """

    precisions: Float[np.ndarray, " L"]
    other: float
    start: float
    loss: float


def refine(
    groups: LayerGroups,
    products: Products,
    loss: Callable[[Products, Float[Array, "N K K"], Array], Float[Array, ""]],
    precision: float,
    other: float,
    bounds: tuple[float, float],
    *,
    steps: int = _STEPS,
) -> Refined:
    """Minimise a held-out loss over precisions and one more hyperparameter, from one precision for all (L-BFGS-B).

    Args:
        groups: Of the curvature.
        products: Of the held-out samples.
        loss: ``loss(products, covariances, other)``; what it binds as a pytree is data of the program.
        precision: Where all begin.
        other: Where the other hyperparameter begins.
        bounds: Of the latter; precisions stay within a factor of a thousand of where they begin.
        steps: At most.
    """
    number = int(groups.layers.max()) + 1 if groups.layers.size else 1
    bound = as_jit_argument(loss)
    begin = np.log(np.append(np.full(number, precision), other))

    def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = _value_and_slope(bound, groups, products, jnp.asarray(point, groups.values.dtype))
        finite = np.isfinite(float(value))
        return (float(value), np.asarray(slope, np.float64)) if finite else (1e30, np.zeros_like(point))

    within = [(x - _REACH, x + _REACH) for x in begin[:-1]]
    limits = [*within, (math.log(bounds[0]), math.log(bounds[1]))]
    start = objective(begin)[0]
    found: Any = scipy.optimize.minimize(
        objective, begin, jac=True, method="L-BFGS-B", bounds=limits, options={"maxiter": steps}
    )
    end, value = (found.x, float(found.fun)) if found.fun < start else (begin, start)
    return Refined(np.exp(end[:-1]), float(np.exp(end[-1])), start, value)


@jax.jit
@full_precision
def _value_and_slope(loss: Any, groups: LayerGroups, products: Products, point: Array) -> tuple[Array, Array]:
    def of(point: Array) -> Array:
        hyper = jnp.exp(point)
        return loss(products, covariances(groups, products, hyper[:-1]), hyper[-1])

    return jax.value_and_grad(of)(point)
