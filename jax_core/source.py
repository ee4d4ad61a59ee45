"""What a curvature is made of, and the streams of products and rows that it can be read as."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jax_core.curvature.data_sums import DataSums, evaluate
from jax_core.curvature.kept_products import KeptProducts, residual_bytes
from jax_core.curvature.product_log import ProductLog
from jax_core.curvature.product_stream import ProductStream
from jax_core.data.batches import batch_size
from jax_core.data.checkpoint import Checkpoint
from jax_core.data.passes import LoaderPasses
from jax_core.data.trees import get_size
from jax_core.gradients.jacobian_stream import JacobianStream
from jax_core.gradients.jacobians import find_layout
from jax_core.gradients.outer_stream import OuterStream, is_outer
from jax_core.gradients.pull_stream import PullStream
from jax_core.gradients.row_stream import RowStream
from jax_core.gradients.rows import loss_rows
from jax_core.gradients.weight_order import Order, find_order, in_order
from jax_core.likelihoods import Likelihood, block_size
from jax_core.lowrank.plan import Plan, Problem
from jax_core.operators import Diagonal, Symmetric
from jax_core.types import ModelFn, Params
from jax_core.xla.chunks import example_shapes
from jax_core.xla.compiled import as_jit_argument
from jax_core.xla.memory import free_bytes, gibibytes

_LOW_RANK = 4  # blocks of vectors that a reduction holds at once: basis, image, and what is made of them
_KRONECKER = 6.0  # times the parameters: a layer's two factors and their eigenvectors, and diagonals
_MANY_OUTPUTS, _LONG = 100, 1e14  # outputs of a sample, and operations of a fit: an hour of a CPU
_STREAMED = 10_000  # samples that a loader may have where it does not tell
_FULL = 3  # matrices: the curvature, and a factor and a root of it, or eigenvectors and workspace


@dataclass(frozen=True)
class Source:
    """A model, its loss and its data."""

    model_fn: ModelFn
    params: Params
    likelihood: Likelihood
    passes: LoaderPasses
    checkpoint: Checkpoint | None = None

    @property
    def dtype(self) -> Any:
        """Of flat vectors."""
        return jnp.result_type(*jax.tree.leaves(self.params))

    @cached_property  # one function, so that what is compiled for the plan serves the fit
    def in_order_of_gradients(self) -> tuple[Source, Order]:
        """The same with the parameters' axes as gradients have them, for what goes by rows."""
        order = find_order(self.model_fn, self.params, example_shapes(self.passes.peek().input))
        model = as_jit_argument(in_order(self.model_fn, order))
        return Source(model, order.of(self.params), self.likelihood, self.passes, self.checkpoint), order

    def rows(self, tolerance: float, *, repeated: bool = False) -> RowStream:
        """The curvature as rows; the state of a single pass is kept."""
        parts = (self.model_fn, self.params, self.likelihood, self.passes)
        return RowStream(*parts, tolerance=tolerance, checkpoint=None if repeated else self.checkpoint)

    def pulls(self, tolerance: float, part: str, *, repeated: bool = False) -> PullStream:
        """The curvature as rows of examples; the state of a pass that is named, and not repeated, is kept."""
        parts = (self.model_fn, self.params, self.likelihood, self.passes)
        kept = None if repeated or self.checkpoint is None else self.checkpoint.part(part)
        return PullStream(*parts, tolerance=tolerance, checkpoint=kept)

    def logged(
        self, product: Callable[[Array], Array], sums: Callable[[], DataSums | None], *, repeated: bool = True
    ) -> ProductLog:
        """A product whose results are kept where many of them are to come."""
        return ProductLog(product, sums, self.passes, self.checkpoint if repeated else None)

    def blocks(self, plan: Plan, *, repeated: bool, keep_bytes: int) -> JacobianStream | ProductStream | KeptProducts:
        """The curvature as products with blocks of vectors, by the plan's strategy."""
        if plan.strategy == "jacobians":
            parts = (self.model_fn, self.params, self.likelihood, self.passes)
            return JacobianStream(*parts, checkpoint=None if repeated else self.checkpoint)
        return self.products(repeated=repeated, keep_bytes=keep_bytes)

    def products(self, *, repeated: bool, keep_bytes: int) -> ProductStream | KeptProducts:
        """The curvature as products, with linearisations kept where several passes are to come and memory allows."""
        parts = (self.model_fn, self.params, self.likelihood)
        count = self.passes.num_samples
        if repeated and count is not None:
            batch = self.passes.peek()
            if count * residual_bytes(*parts, batch) <= keep_bytes:
                return KeptProducts(*parts, self.passes)
        return ProductStream(*parts, self.passes, checkpoint=None if repeated else self.checkpoint)

    def matrix(self) -> tuple[Symmetric, DataSums]:
        """The whole curvature, in one pass."""
        example = example_shapes(self.passes.peek().input)
        layout = find_layout(self.model_fn, self.params, example)
        if is_outer(layout, jax.eval_shape(self.model_fn, example, self.params).size):
            outer = OuterStream(self.model_fn, self.params, self.likelihood, self.passes, checkpoint=self.checkpoint)
            return Symmetric.from_matrix(outer.matrix(layout)), outer.sums
        stream = self.rows(0.0)
        matrix = stream.fold(_add_gram, jnp.zeros((stream.size, stream.size), stream.dtype))
        return Symmetric.from_matrix(matrix), stream.sums

    def diagonal(self) -> tuple[Diagonal, DataSums]:
        """Its diagonal, in one pass."""
        stream = self.rows(0.0)
        return Diagonal(stream.fold(_add_squares, jnp.zeros(stream.size, stream.dtype))), stream.sums


def _add_gram(total: Array, rows: Array, extra: None) -> Array:
    return total + rows.T @ rows


def _add_squares(total: Array, rows: Array, extra: None) -> Array:
    return total + jnp.square(rows).sum(0)


def problem_of(source: Source, *, rank: int, rows_bytes: int, tolerance: float) -> Problem:
    """What the cost model asks about a fit, from the first batch and from shapes; parameters in order of gradients."""
    batch = source.passes.peek()
    count = jnp.asarray(batch_size(batch))
    outputs, _ = evaluate(source.model_fn, source.params, source.likelihood, batch, count)
    per_sample = outputs[0].size
    enough = max(1, min(256, 2**16 // per_sample))  # samples
    few, target = jax.tree.map(lambda leaf: leaf[:enough], (outputs, batch.target))
    rows = float(per_sample)
    if block_size(source.likelihood, outputs.shape[1:]) <= 256:
        rows = len(loss_rows(source.likelihood, few, target, tolerance)[0]) / few.shape[0]
    example = example_shapes(batch.input)
    layout = find_layout(source.model_fn, source.params, example)
    return Problem(
        size=layout.size,
        plain=layout.plain_size,
        factored=layout.factored_size,
        samples=source.passes.num_samples,
        outputs=per_sample,
        rows_per_sample=rows,
        forward_flops=_forward_flops(source, example),
        rank=rank,
        rows_bytes=rows_bytes,
        itemsize=jnp.dtype(source.dtype).itemsize,
    )


def _forward_flops(source: Source, example: Any) -> float:
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), source.params)
    costs = jax.jit(lambda x, p: source.model_fn(x, p)).lower(example, shapes).cost_analysis() or {}
    return float(costs.get("flops", 2 * get_size(source.params)))


def needed_bytes(source: Source, structure: str, rank: int) -> dict[str, float]:
    """Bytes that each structure needs, beside the network itself, by their names."""
    size, itemsize = get_size(source.params), jnp.dtype(source.dtype).itemsize
    batch = source.passes.peek()
    outputs = jax.eval_shape(source.model_fn, example_shapes(batch.input), source.params).size
    hessians = 2 * 8.0 * batch_size(batch) * outputs**2  # of a batch in float64, and their eigenvectors
    return {
        "full": _FULL * itemsize * float(size) ** 2 + hessians,
        "diag": 2.0 * itemsize * size + hessians,
        "lowrank": _LOW_RANK * itemsize * 2.0 * rank * size,
        "kron": _KRONECKER * itemsize * size + hessians,
        "ekfac": _KRONECKER * itemsize * size + hessians,
        "kron_lowrank": itemsize * (_LOW_RANK * 2.0 * rank + _KRONECKER) * size + hessians,
    }


def check_memory(source: Source, structure: str, rank: int) -> None:
    """Refuse what cannot fit, before any work.

    Raises:
        MemoryError: With what is needed, what is free, and the structures that would fit.
    """
    free = free_bytes(next(iter(jax.tree.leaves(source.params)[0].devices())))
    needed = needed_bytes(source, structure, rank)
    if free is None or needed[structure] <= free:
        return
    fitting = [
        f"{name!r} ({gibibytes(count)})" for name, count in needed.items() if name != structure and count <= free
    ]
    smaller = int(free / needed[structure] * rank) if structure in ("lowrank", "kron_lowrank") else 0
    if smaller:
        fitting.append(f"rank={smaller}")
    remedy = f"Use {' or '.join(fitting)}." if fitting else "Let fewer parameters have requires_grad=True."
    raise MemoryError(
        f"The structure {structure!r} of {get_size(source.params):,} parameters takes about "
        f"{gibibytes(needed[structure])}, and {gibibytes(free)} are free. {remedy}"
    )


def warn_of_many_outputs(source: Source) -> None:
    """Say that a fit by rows will take long since each sample has many outputs, before any work.

    Warns:
        UserWarning: With what it costs in epochs of training, and what is cheaper.
    """
    ordered, _ = source.in_order_of_gradients
    example = example_shapes(source.passes.peek().input)
    outputs = jax.eval_shape(ordered.model_fn, example, ordered.params).size
    if outputs <= _MANY_OUTPUTS:
        return
    layout = find_layout(ordered.model_fn, ordered.params, example)
    if all(slot.vectors == 1 and slot.outs == outputs for slot in layout.factored) and layout.plain_size <= outputs:
        return  # a last layer's rows are products of its inputs
    operations = 3 * _forward_flops(ordered, example) * outputs * (source.passes.num_samples or _STREAMED)
    if operations > _LONG:
        warnings.warn(
            f"A sample has {outputs:,} outputs and the fit takes a backward pass for each: about as much as "
            f"{outputs:,} epochs of training. curvature='mc_fisher' takes one pass a sample, and so does "
            "curvature='empirical_fisher'; subset_of_weights='last_layer' none.",
            stacklevel=5,
        )
