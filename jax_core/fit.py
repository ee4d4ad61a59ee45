"""From a model and its data to a reduced curvature: the one place where structure, method and data meet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_core.compiled import as_data
from jax_core.curvature.data_loader_mv import LoaderPasses
from jax_core.curvature.data_sums import DataSums, evaluate
from jax_core.curvature.jacobian_stream import JacobianStream
from jax_core.curvature.kept_products import KeptProducts, residual_bytes
from jax_core.curvature.product_stream import ProductStream
from jax_core.curvature.row_stream import RowStream
from jax_core.curvature.rows import loss_rows
from jax_core.footprint import example_of
from jax_core.jacobians import find_layout
from jax_core.likelihoods import Gaussian, Likelihood
from jax_core.lowrank import block_lanczos, gram, lanczos, lobpcg, nystrom
from jax_core.lowrank.plan import Plan, Problem, cheapest, choose
from jax_core.lowrank.spectrum import check_rank
from jax_core.operators import Dense, Diagonal, LowRank, Operator
from jax_core.posterior import gaussian_log_likelihood
from jax_core.short_repr import ShortRepr
from jax_core.trees import get_size
from jax_core.types import ModelFn, Params
from jax_core.windows import suited_to_backend

Structure = Literal["lowrank", "full", "diag"]
Method = Literal["auto", "lanczos", "block_lanczos", "lobpcg", "nystrom", "gram"]


@dataclass(frozen=True, repr=False)
class Fitted(ShortRepr):
    """A curvature and what the same data says about the evidence.

    Attributes:
        curvature: The reduced GGN, scaled to ``num_total_samples``.
        nll: Negative log-likelihood summed over the data, scaled alike.
        num_samples: Samples seen.
        num_total_samples: Samples they stand for.
        outputs_per_sample: Scalar outputs of one sample.
        plan: How a low rank was found, and why so.
    """

    curvature: Operator
    nll: float
    num_samples: int
    num_total_samples: int
    outputs_per_sample: int
    plan: Plan | None

    @property
    def num_outputs(self) -> int:
        """Scalar outputs that the total samples have."""
        return self.num_total_samples * self.outputs_per_sample

    def log_likelihood(self, likelihood: Likelihood, sigma_noise: float = 1.0) -> Array:
        r"""$\log p(\mathcal D \mid \theta^*)$, normalised by the noise where the likelihood is Gaussian."""
        if isinstance(likelihood, Gaussian):
            return gaussian_log_likelihood(self.nll, self.num_outputs, sigma_noise)
        return jnp.asarray(-self.nll)


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How a curvature is reduced.

    Attributes:
        structure: ``"lowrank"``, ``"full"`` or ``"diag"``.
        method: For low rank: ``"auto"``, ``"lanczos"``, ``"block_lanczos"``, ``"lobpcg"``, ``"nystrom"`` or ``"gram"``.
        rank: Eigenpairs of a low-rank curvature.
        passes: Passes over the data of ``"nystrom"``.
        tolerance: Share of the loss curvature that a low rank may drop before gradients are taken row by row (see
            :mod:`jax_core.curvature.rows`); the other structures and methods drop nothing.
        rows_bytes: Rows are kept as a matrix when they fit into this.
        keep_bytes: Methods with several passes keep the network's linearisation between them if it fits into this.
        progress: Show progress bars.
    """

    structure: Structure = "lowrank"
    method: Method = "auto"
    rank: int = 100
    passes: int = 1
    tolerance: float = 1e-3
    rows_bytes: int = 2**29
    keep_bytes: int = 2**30
    progress: bool = True

    def check(self, size: int) -> None:
        """Refuse what cannot work for a model of ``size`` parameters.

        Raises:
            ValueError: If the rank exceeds the number of parameters.
        """
        if self.structure == "lowrank":
            check_rank(self.rank, size)


@dataclass(frozen=True)
class Source:
    """A model, its loss and its data."""

    model_fn: ModelFn
    params: Params
    likelihood: Likelihood
    passes: LoaderPasses

    @property
    def dtype(self) -> Any:
        """Of flat vectors."""
        return jnp.result_type(*jax.tree.leaves(self.params))

    def rows(self, tolerance: float) -> RowStream:
        """The curvature as rows."""
        return RowStream(self.model_fn, self.params, self.likelihood, self.passes, tolerance=tolerance)

    def blocks(self, plan: Plan, *, repeated: bool, keep_bytes: int) -> JacobianStream | ProductStream | KeptProducts:
        """The curvature as products with blocks of vectors, by the plan's strategy."""
        if plan.strategy == "jacobians":
            return JacobianStream(self.model_fn, self.params, self.likelihood, self.passes)
        return self.products(repeated=repeated, keep_bytes=keep_bytes)

    def products(self, *, repeated: bool, keep_bytes: int) -> ProductStream | KeptProducts:
        """The curvature as products, with linearisations kept where several passes are to come and memory allows."""
        parts = (self.model_fn, self.params, self.likelihood)
        count = self.passes.num_samples
        if repeated and count is not None:
            batch = next(iter(self.passes))
            if count * residual_bytes(*parts, batch) <= keep_bytes:
                return KeptProducts(*parts, self.passes)
        return ProductStream(*parts, self.passes)


def fit_curvature(
    model_fn: ModelFn,
    params: Params,
    likelihood: Likelihood,
    passes: LoaderPasses,
    options: FitOptions,
    *,
    key: Array,
    num_total_samples: int | None = None,
) -> Fitted:
    """Reduce the GGN of a model over a loader.

    Args:
        model_fn: ``model_fn(input, params)`` for one example.
        params: Where to linearise.
        likelihood: The loss.
        passes: The data.
        options: Structure and method.
        key: Random key.
        num_total_samples: The data set's size if the loader shows a subset of it.

    Raises:
        ValueError: If the rank does not fit, or the loader is empty or changes.
        FloatingPointError: If outputs or products are not finite.
    """
    options.check(get_size(params))
    source = Source(as_data(suited_to_backend(model_fn)), params, likelihood, passes)
    plan = make_plan(source, options) if options.structure == "lowrank" else None
    if plan is not None:
        curvature, sums = _low_rank(source, options, plan, key)
    else:
        curvature, sums = _full(source) if options.structure == "full" else _diagonal(source)
    total = sums.samples if num_total_samples is None else num_total_samples
    factor = total / sums.samples
    return Fitted(curvature.rescale(factor), sums.nll * factor, sums.samples, total, sums.outputs_per_sample, plan)


def make_plan(source: Source, options: FitOptions) -> Plan:
    """The method asked for, or the cheapest; the cost model also chooses how blocks of vectors meet the data."""
    if options.method == "gram":
        return Plan("gram", "rows", "asked for")
    if options.method in ("lanczos", "block_lanczos"):
        return Plan(options.method, "products", "asked for")
    problem = _problem(source, options)
    if options.method == "lobpcg":
        return Plan("lobpcg", cheapest(problem, "products", "jacobians"), "asked for")
    plan = choose(problem)
    if options.method == "auto" or plan.method == "nystrom":
        return plan
    return Plan("nystrom", cheapest(problem), "asked for")


def _problem(source: Source, options: FitOptions) -> Problem:
    batch = next(iter(source.passes))
    outputs, _ = evaluate(source.model_fn, source.params, source.likelihood, batch)
    per_sample = outputs[0].size
    few, target = jax.tree.map(lambda leaf: leaf[:256], (outputs, batch.target))
    rows = float(per_sample)
    if per_sample <= 256:
        rows = len(loss_rows(source.likelihood, few, target, options.tolerance)[0]) / few.shape[0]
    layout = find_layout(source.model_fn, source.params, example_of(batch))
    return Problem(
        size=layout.size,
        plain=layout.plain_size,
        samples=source.passes.num_samples,
        outputs=per_sample,
        rows_per_sample=rows,
        forward_flops=_forward_flops(source, batch.input),
        rank=options.rank,
        rows_bytes=options.rows_bytes,
        itemsize=jnp.dtype(source.dtype).itemsize,
    )


def _forward_flops(source: Source, inputs: Any) -> float:
    example = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), inputs)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), source.params)
    costs = jax.jit(lambda x, p: source.model_fn(x, p)).lower(example, shapes).cost_analysis() or {}
    return float(costs.get("flops", 2 * get_size(source.params)))


def _low_rank(source: Source, options: FitOptions, plan: Plan, key: Array) -> tuple[LowRank, DataSums]:
    if plan.method == "gram":
        return _gram(source.rows(options.tolerance), options)
    return _nystrom(source, options, plan, key) if plan.method == "nystrom" else _krylov(source, options, plan, key)


def _gram(stream: RowStream, options: FitOptions) -> tuple[LowRank, DataSums]:
    rows = stream.matrix(options.rows_bytes)
    if rows is None:
        raise ValueError(
            f"method='gram' keeps one row per sample and output: more than {options.rows_bytes} bytes here. Use "
            "method='nystrom', fewer samples, or a larger rows_bytes."
        )
    return gram(rows, rank=options.rank), stream.sums


def _nystrom(source: Source, options: FitOptions, plan: Plan, key: Array) -> tuple[LowRank, DataSums]:
    if plan.strategy == "rows":
        stream = source.rows(options.tolerance)

        def block(rows: Float[Array, "K P"]) -> Float[Array, "K P"]:
            return stream.fold(_add_sketch, jnp.zeros_like(rows), rows)

    else:
        stream = source.blocks(plan, repeated=options.passes > 1, keep_bytes=options.keep_bytes)
        block = stream.block
    size = get_size(source.params)
    found = nystrom(block, size, rank=options.rank, key=key, passes=options.passes, dtype=source.dtype)
    return found, _counted(stream.sums)


def _krylov(source: Source, options: FitOptions, plan: Plan, key: Array) -> tuple[LowRank, DataSums]:
    size, rank = get_size(source.params), options.rank
    if plan.method == "lobpcg":
        stream = source.blocks(plan, repeated=True, keep_bytes=options.keep_bytes)
        return lobpcg(stream.block, size, rank=rank, key=key, dtype=source.dtype), _counted(stream.sums)
    products = source.products(repeated=True, keep_bytes=options.keep_bytes)
    if plan.method == "lanczos":
        layout = jnp.zeros_like(jax.tree.leaves(source.params)[0], source.dtype, (size,))  # on the parameters' device
        found = lanczos(products.product, layout, rank=rank, key=key, mv_jit=False, progress=options.progress)
    else:
        shown = {"dtype": source.dtype, "progress": options.progress}
        found = block_lanczos(products.block, size, rank=rank, key=key, **shown)
    return found, _counted(products.sums)


def _counted(sums: DataSums | None) -> DataSums:
    assert sums is not None  # every method makes at least one whole pass
    return sums


def _full(source: Source) -> tuple[Dense, DataSums]:
    stream = source.rows(0.0)
    matrix = stream.fold(_add_gram, jnp.zeros((stream.size, stream.size), stream.dtype))
    return Dense.from_matrix(matrix).apply(lambda w: jnp.maximum(w, 0.0)), stream.sums


def _diagonal(source: Source) -> tuple[Diagonal, DataSums]:
    stream = source.rows(0.0)
    return Diagonal(stream.fold(_add_squares, jnp.zeros(stream.size, stream.dtype))), stream.sums


def _add_sketch(image: Array, rows: Array, basis: Array) -> Array:
    return image + (rows @ basis.T).T @ rows


def _add_gram(total: Array, rows: Array, extra: None) -> Array:
    return total + rows.T @ rows


def _add_squares(total: Array, rows: Array, extra: None) -> Array:
    return total + jnp.square(rows).sum(0)
