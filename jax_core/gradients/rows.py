r"""The GGN as a Gram matrix of rows: $\sum_i J_i^\top H_i J_i = R^\top R$.

Each sample's loss Hessian is split into eigenpairs, $H_i = \sum_k \lambda_{ik} u_{ik} u_{ik}^\top$, and each pair is
one row $\sqrt{\lambda_{ik}}\, u_{ik}^\top J_i$ of $R$: one gradient of one scalar. A confident classifier has one or
two eigenvalues per sample that matter, so far fewer rows than outputs are pushed back, with a known loss: what is
dropped is positive semi-definite, and its share of $\sum_i \operatorname{tr} H_i$ is at most ``tolerance``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_core.data.batches import Batch
from jax_core.data.trees import get_size
from jax_core.gradients.cotangents import Cotangents, joined
from jax_core.likelihoods import Likelihood, block_hessians
from jax_core.types import ModelFn, Params
from jax_core.xla.backend import platform
from jax_core.xla.chunks import forward_cost, rows_per_block

_ACTIVATIONS = 32 * 2**20  # behind a chunk of rows
_CHUNK = 128  # measured on a small CNN: chunks of 64 to 128 rows, ten times slower from 256 on


class Rows(NamedTuple):
    """A block of rows yet to be pushed back: inputs ``(R, ...)`` and cotangents ``(R, *output)``; padding is zero."""

    input: Any
    cotangent: Float[Array, "R *output"]


def loss_rows(
    likelihood: Likelihood, outputs: Float[Array, "B *output"], target: Any, tolerance: float, count: int | None = None
) -> tuple[np.ndarray, Cotangents]:
    r"""Sample numbers and cotangents $\sqrt{\lambda} u$ of a batch's loss Hessians, the smallest dropped.

    Only its first ``count`` samples are looked at.

    Raises:
        ValueError: If a Hessian has a negative eigenvalue beyond rounding.
    """
    hessians = np.asarray(_block_hessians(likelihood, outputs, target), np.float64)[:count]
    values, vectors = np.linalg.eigh(hessians)  # (B, N, K), (B, N, K, K)
    largest = float(np.abs(values).max(initial=0.0))
    if values.min(initial=0.0) < -1e-4 * largest:
        raise ValueError(
            f"The loss is not convex in the model's output: its Hessian has an eigenvalue of {values.min():.3g} beside "
            f"{largest:.3g}. Its GGN is no precision matrix; choose another loss or the empirical Fisher."
        )
    values = np.maximum(values, 0.0)
    order = np.sort(values, axis=None)
    dropped = np.searchsorted(np.cumsum(order), tolerance * order.sum(), side="right")
    # The smallest value that is kept; its equals are kept with it, so that nothing is dropped from equal ones.
    threshold = order[dropped] if dropped < order.size else np.inf
    sample, block, column = np.nonzero((values >= threshold) & (values > 0))
    found = vectors[sample, block, :, column] * np.sqrt(values[sample, block, column])[:, None]
    return sample, Cotangents(block, found.astype(outputs.dtype), outputs.shape[1:])


@jax.jit
def _block_hessians(likelihood: Likelihood, outputs: Array, target: Any) -> Array:
    return block_hessians(likelihood, outputs, target)


def pack_rows(batches: Iterable[tuple[Batch, np.ndarray, Cotangents]], size: int) -> Iterator[Rows]:
    """Regroup the rows of many batches into blocks of one size, the last padded with zero cotangents."""
    inputs: list[Any] = []
    cotangents: list[Cotangents] = []
    waiting = 0
    for batch, sample, cotangent in batches:
        host = jax.tree.map(np.asarray, batch.input)
        start = 0
        while start < len(sample):
            stop = min(len(sample), start + size - waiting)
            inputs.append(jax.tree.map(lambda leaf, rows=sample[start:stop]: leaf[rows], host))
            cotangents.append(cotangent[start:stop])
            waiting += stop - start
            start = stop
            if waiting == size:
                yield _block(inputs, cotangents, size)
                inputs, cotangents, waiting = [], [], 0
    if waiting:
        yield _block(inputs, cotangents, size)


def _block(inputs: list[Any], cotangents: list[Cotangents], size: int) -> Rows:
    def fill(*parts: np.ndarray) -> Array:
        whole = np.concatenate(parts)
        return jnp.asarray(np.pad(whole, [(0, size - len(whole))] + [(0, 0)] * (whole.ndim - 1), mode="edge"))

    def pad_zero(whole: np.ndarray) -> Array:
        return jnp.asarray(np.pad(whole, [(0, size - len(whole))] + [(0, 0)] * (whole.ndim - 1)))

    # Inputs are padded by repetition: a zero image may be outside a network's domain (a normalisation by zero).
    return Rows(jax.tree.map(fill, *inputs), pad_zero(joined(cotangents).written()))


class RowPlan(NamedTuple):
    """Rows per block and rows per evaluation of the network inside it."""

    block: int
    chunk: int


def plan_rows(model_fn: ModelFn, params: Params, example: Any) -> RowPlan:
    """Sizes that keep both the block of rows and the activations behind it in reach of the caches."""
    size = forward_cost(model_fn, params, example)
    most = rows_per_block(4 * get_size(params))
    if platform() != "cpu":
        return RowPlan(min(most * 16, 4096), min(most * 16, 4096))
    chunk = max(1, min(most, _CHUNK, _ACTIVATIONS // max(1, size.bytes)))
    # A convolution primitive must not sit in a compiled loop, so the block is one chunk.
    return RowPlan(chunk if size.convolves else max(1, most // chunk) * chunk, chunk)


def push_back(model_fn: ModelFn, params: Params, rows: Rows, chunk: int) -> Float[Array, "R P"]:
    """The rows as vectors over the flattened parameters, ``chunk`` at a time. Traceable."""

    def one(x: Any, cotangent: Array) -> Array:
        gradient = jax.grad(lambda p: (model_fn(x, p) * cotangent).sum())(params)
        return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(gradient)])

    total = rows.cotangent.shape[0]
    if total <= chunk:
        return jax.vmap(one)(*rows)
    pieces = jax.tree.map(lambda leaf: leaf.reshape(total // chunk, chunk, *leaf.shape[1:]), rows)
    return jax.lax.map(lambda piece: jax.vmap(one)(*piece), pieces).reshape(total, -1)
