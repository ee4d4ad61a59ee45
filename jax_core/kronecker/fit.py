r"""From rows of a curvature to Kronecker blocks, and to what is exact in their eigenvectors' coordinates.

For a matrix that meets vectors $x_{ns}$ the block of $G = \sum_n J_n^\top H_n J_n$ is close to $B \otimes A$ with
$B = \sum_{ns} \bar y_{ns} \bar y_{ns}^\top$ over the rows of $G$ and $A = \tfrac{1}{NS} \sum_{ns} x_{ns} x_{ns}^\top$
(Martens and Grosse, 2015, arXiv:1503.05671; over positions this is "expand" of Eschenhagen et al., 2023,
arXiv:2311.00636; "reduce" has $\sum_s \bar y_{ns}$ and the mean of $x_{ns}$ in their place, one of each a sample). In
the eigenvectors' coordinates the exact diagonal of $G$ is no worse (George et al., 2018, arXiv:1806.03884), and beside
the leading eigenvectors of the whole of $G$, which know of all layers, it is what they leave out.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float

from jax_core.curvature.data_sums import DataSums
from jax_core.data.trees import get_size
from jax_core.gradients.factored import Layout
from jax_core.gradients.jacobians import find_layout
from jax_core.gradients.rotated import Coordinates, kronecker_leaves, worth_rotating
from jax_core.kronecker.layers import find_layers
from jax_core.kronecker.some_batches import SomeBatches
from jax_core.kronecker.steps import AddFactors, AddRotated, KfacApprox
from jax_core.lowrank import gram, nystrom
from jax_core.operators import BlockDiagonal, BlockLowRank, Dense, Diagonal, Kronecker, RowBlocks
from jax_core.operators.projection import Projection
from jax_core.source import Source
from jax_core.types import ModelFn, Params
from jax_core.xla.chunks import example_shapes
from jax_core.xla.compiled import cached_by_shape

KroneckerStructure: TypeAlias = Literal["kron", "ekfac", "kron_lowrank"]

_ENOUGH = 2048  # samples, at least, from which the coordinates beside a low rank are taken
_EXACT = 1024  # sides of a factor up to which it is diagonalised in float64


def fit_kronecker(
    source: Source,
    structure: KroneckerStructure,
    *,
    approximation: KfacApprox,
    rank: int,
    exact: bool,
    passes: int,
    tolerance: float,
    rows_bytes: int,
    key: Array,
) -> tuple[BlockDiagonal | BlockLowRank, DataSums]:
    """Reduce a curvature whose parameters are in the order of gradients.

    Args:
        source: The model and its data.
        structure: ``"kron"``, the factors' products; ``"ekfac"``, the exact diagonal in their coordinates;
            ``"kron_lowrank"``, the leading eigenpairs of the whole and that diagonal of what they leave out.
        approximation: Of the factors, where a matrix meets several vectors of a sample.
        rank: Eigenpairs of the last.
        exact: Take them from the Gram matrix of all rows, which are few.
        passes: Passes over the data of the sketch otherwise.
        tolerance: Share of the loss curvature that a sketch may drop; the factors and
            diagonals of the others drop the root of the rounding error.
        rows_bytes: Memory for all rows, where they are few.
        key: Random key.

    Raises:
        ValueError: If all rows are asked for, and do not fit.
    """
    layers = find_layers(source.model_fn, source.params, example_shapes(source.passes.peek().input))
    if structure != "kron_lowrank":
        tolerance = float(jnp.finfo(source.dtype).eps) ** 0.5
    elif exact:
        tolerance = 0.0
    if structure != "kron_lowrank":
        blocks, sums = _factors(source, AddFactors(layers, approximation), tolerance, own_biases=False)
        if structure == "kron":
            return blocks, sums
        diagonal, _, sums = _rotated(source, blocks, tolerance, None)
        return blocks.with_spectrum(diagonal), sums
    visit = AddFactors(layers, approximation)
    blocks, _ = _factors(_some(source), visit, tolerance, own_biases=True)  # a basis alone, which may be an estimate
    if exact:
        stream = source.rows(tolerance, repeated=True)
        turned = _turn(blocks, stream.matrix(rows_bytes))
        return _with_rest(blocks, gram(turned, rank=rank), jnp.square(turned).sum(0)), stream.sums
    found: list[tuple[Array, DataSums]] = []

    def block(vectors: Float[Array, "K P"]) -> Float[Array, "K P"]:
        diagonal, image, sums = _rotated(source, blocks, tolerance, vectors, repeated=passes > 1)
        found[:] = [(diagonal, sums)]
        return image

    low = nystrom(block, get_size(source.params), rank=rank, key=key, passes=passes, dtype=source.dtype)
    return _with_rest(blocks, low, found[0][0]), found[0][1]


def _some(source: Source) -> Source:
    """The source with as many of its batches, evenly over the pass, as an eigenbasis needs."""
    known = source.passes.num_samples
    step = 1 if known is None else known // _ENOUGH
    return source if step < 2 else dataclasses.replace(source, passes=SomeBatches(source.passes, step))


@jax.jit
def _turn(blocks: BlockDiagonal, rows: Float[Array, "N P"]) -> Float[Array, "N P"]:
    return blocks.rotate(rows)


@jax.jit
def _with_rest(blocks: BlockDiagonal, low: Any, diagonal: Float[Array, " P"]) -> BlockLowRank:
    """Low rank, and of what it leaves out the diagonal."""
    rest = diagonal - jnp.square(low.U) @ low.s
    return BlockLowRank(blocks.with_spectrum(jnp.maximum(rest, 0.0)), low.U, low.s)


def _factors(
    source: Source, visit: AddFactors, tolerance: float, *, own_biases: bool
) -> tuple[BlockDiagonal, DataSums]:
    """One pass for the factors of all matrices, and the blocks of all else."""
    layers = visit.layers
    stream = source.pulls(tolerance, "both factors")
    lefts, grams = stream.fold(visit, visit.start(source.dtype))
    samples, biases = stream.sums.samples, {} if own_biases else dict(layers.biases)
    sides = {s.leaf: (a, samples * visit.count(s)) for s, a in zip(layers.layout.factored, grams, strict=True)}
    eigen = {leaf: _eigh(lefts[leaf]) for leaf in range(len(lefts)) if lefts[leaf].ndim == 2 and leaf not in biases}
    parts: list[Any] = []
    for leaf, (slot, total) in enumerate(zip(layers.slots, lefts, strict=True)):
        rows = layers.rows(slot)
        if leaf in sides:
            parts.append(_product(*eigen[leaf], *sides[leaf]))
        elif leaf in biases or total.ndim == 2:
            parts.append(Dense(*eigen[biases.get(leaf, leaf)]))
        elif rows is not None:
            parts.append(RowBlocks(*_eigh_of_rows(total), rows.across))
        else:
            parts.append(Diagonal(total))
    return BlockDiagonal(tuple(parts)), stream.sums


def _product(b: Array, left: Array, gram: Array, count: int) -> Kronecker:
    """From one factor's eigenpairs and the other's sum; the latter of a table is diagonal, and comes first."""
    if gram.ndim == 1:
        return Kronecker(None, left, (gram / max(count, 1))[:, None] * b)
    a, right = _eigh(gram)
    return Kronecker(left, right, b[:, None] * (a / max(count, 1)))


def _eigh(matrix: Float[Array, "N N"]) -> tuple[Float[Array, " N"], Float[Array, "N N"]]:
    """Eigenpairs of a positive semi-definite factor, on the host."""
    host = np.asarray(matrix)
    wide = host.astype(np.float64) if len(host) <= _EXACT else host
    values, vectors = scipy.linalg.eigh((wide + wide.T) / 2, driver="evd")
    return jnp.asarray(np.maximum(values, 0.0), matrix.dtype), jnp.asarray(vectors, matrix.dtype)


def _eigh_of_rows(matrices: Float[Array, "G N N"]) -> tuple[Float[Array, "G N"], Float[Array, "G N N"]]:
    """Eigenpairs of each of many blocks, on the host."""
    wide = np.asarray(matrices, np.float64)
    values, vectors = np.linalg.eigh((wide + wide.swapaxes(1, 2)) / 2)
    return jnp.asarray(np.maximum(values, 0.0), matrices.dtype), jnp.asarray(vectors, matrices.dtype)


def _rotated(
    source: Source,
    blocks: BlockDiagonal,
    tolerance: float,
    vectors: Float[Array, "K P"] | None,
    *,
    repeated: bool = False,
) -> tuple[Float[Array, " P"], Any, DataSums]:
    """One pass in the blocks' coordinates: the exact diagonal, and the products with a block of vectors."""
    example = example_shapes(source.passes.peek().input)
    layout = rotated_layout(source.model_fn, source.params, example, kronecker=kronecker_leaves(blocks))
    coordinates = Coordinates.of(Projection(blocks, None, None, None), layout)
    visit = AddRotated(layout, vectors is not None)
    cut = None if vectors is None else visit.cut.split(vectors)
    zero = visit.cut.split(jnp.zeros((1, get_size(source.params)), source.dtype))
    start = (None if cut is None else jax.tree.map(jnp.zeros_like, cut), zero)
    stream = source.pulls(tolerance, "turned", repeated=repeated)
    image, diagonal = stream.fold(visit, start, (coordinates, cut))
    joined = None if image is None else visit.cut.join(image)
    return visit.cut.join(diagonal)[0], joined, stream.sums


@cached_by_shape
def rotated_layout(model_fn: ModelFn, params: Params, example: Any, *, kronecker: tuple[bool, ...] | None) -> Layout:
    """Which leaves of an example's rows stay in factors while they are rotated."""
    return find_layout(model_fn, params, example, worth_rotating(kronecker))
