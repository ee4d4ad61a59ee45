"""From a model and its data to a reduced curvature: the one place where structure, method and data meet."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_core.curvature.data_sums import DataSums
from jax_core.curvature.fisher_likelihood import Curvature, with_curvature
from jax_core.curvature.independent_outputs import IndependentOutputs
from jax_core.data.batches import batch_size
from jax_core.data.checkpoint import Checkpoint
from jax_core.data.passes import LoaderPasses, SmallerPasses
from jax_core.data.trees import get_size
from jax_core.fitted import Fitted
from jax_core.frozen import FeaturePasses, split
from jax_core.gradients.row_stream import RowStream
from jax_core.kronecker import KfacApprox, KroneckerStructure, fit_kronecker, plan_kronecker
from jax_core.left_out import check_reduced
from jax_core.likelihoods import Likelihood
from jax_core.lowrank import block_lanczos, gram, lanczos, lobpcg, nystrom
from jax_core.lowrank.plan import Plan, cheapest, choose
from jax_core.operators import LowRank, Operator
from jax_core.source import Source, check_memory, problem_of, warn_of_many_outputs
from jax_core.types import ModelFn, Params
from jax_core.xla.chunks import example_shapes
from jax_core.xla.compiled import as_jit_argument
from jax_core.xla.convolutions import with_fast_convolutions
from jax_core.xla.memory import half_after
from jax_core.xla.precision import full_precision

Structure = Literal["lowrank", "full", "diag", "kron", "ekfac", "kron_lowrank", "gp"]
PER_LAYER: frozenset[Structure] = frozenset({"kron", "ekfac", "kron_lowrank"})
"""Structures whose prior is one number for each layer at most."""

_ROWS_BYTES = 2**32  # of all rows of a posterior in function space

Method = Literal["auto", "lanczos", "block_lanczos", "lobpcg", "nystrom", "gram"]


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How a curvature is reduced.

    Attributes:
        structure: ``"lowrank"``, ``"full"``, ``"diag"``; Kronecker products of each layer, ``"kron"``, or with the
            exact diagonal in their coordinates, ``"ekfac"``; or a low rank across the layers with that diagonal
            of what it leaves out, ``"kron_lowrank"``; all rows of a few samples with outputs that curve by
            themselves, a posterior in function space, ``"gp"``.
        curvature: The GGN, ``"ggn"``, or outer products of gradients in its place, at the targets given,
            ``"empirical_fisher"``, or drawn from the model, ``"mc_fisher"``.
        kfac_approx: Of Kronecker products, where a matrix meets several vectors of a sample: each by itself,
            ``"expand"``, or their mean and the sum of cotangents, ``"reduce"`` (arXiv:2311.00636).
        method: For ``"lowrank"``: ``"auto"``, ``"lanczos"``, ``"block_lanczos"``, ``"lobpcg"``, ``"nystrom"`` or
            ``"gram"``.
        rank: Eigenpairs of a low rank; as many as there are parameters at most.
        passes: Passes over the data of ``"nystrom"``.
        tolerance: Share of the loss curvature that a low rank may drop before gradients are taken row by row (see
            :mod:`jax_core.gradients.rows`); the other structures and methods drop nothing.
        rows_bytes: Rows are kept as a matrix when they fit into this.
        keep_bytes: Methods with several passes keep the network's linearisation between them if it fits into this.
        progress: Show progress bars.
    """

    structure: Structure = "lowrank"
    curvature: Curvature = "ggn"
    kfac_approx: KfacApprox = "expand"
    method: Method = "auto"
    rank: int = 100
    passes: int = 1
    tolerance: float = 1e-3
    rows_bytes: int = 2**29
    keep_bytes: int = 2**30
    progress: bool = True

    def __post_init__(self) -> None:
        """Refuse a rank below one, and what the structure would not look at.

        Raises:
            ValueError: Naming what goes with what.
        """
        if self.rank < 1:
            raise ValueError(f"rank={self.rank}: choose a whole number from 1.")
        if self.kfac_approx != "expand" and self.structure not in PER_LAYER:
            raise ValueError(
                f"kfac_approx={self.kfac_approx!r} does not go with hessian_structure={self.structure!r}, which has no "
                f"Kronecker factors. Leave it out, or choose one of {', '.join(map(repr, sorted(PER_LAYER)))}."
            )
        if self.structure == "lowrank":
            return
        known = ("auto", "nystrom", "gram") if self.structure == "kron_lowrank" else ("auto",)
        if self.method not in known:
            raise ValueError(
                f"method={self.method!r} does not go with hessian_structure={self.structure!r}: choose one of "
                f"{', '.join(map(repr, known))}, or hessian_structure='lowrank'."
            )

    def within(self, size: int) -> FitOptions:
        """For a model of ``size`` parameters, whose curvature has no larger rank."""
        return dataclasses.replace(self, rank=min(self.rank, size))


@full_precision
def fit_curvature(
    model_fn: ModelFn,
    params: Params,
    likelihood: Likelihood,
    passes: LoaderPasses,
    options: FitOptions,
    *,
    key: Array,
    num_total_samples: int | None = None,
    checkpoint: Checkpoint | None = None,
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
        checkpoint: Where the state is kept, from which a fit that was killed goes on.

    Raises:
        ValueError: If the loader is empty or changes, or LOBPCG is to find more than a fifth of the eigenpairs.
        FloatingPointError: If outputs or products are not finite.
        MemoryError: If the result cannot fit, with the numbers and what would.

    Warns:
        UserWarning: If memory ran out within the work, which then begins anew with half as many samples at once.
    """
    if options.structure == "gp":
        options = _of_all_rows(options, model_fn, params, passes)
        likelihood = IndependentOutputs(likelihood)
    source = Source(model_fn, params, likelihood, passes, checkpoint)
    curvature, sums, trace, plan = _reduced_in_memory(source, options.within(get_size(params)), key)
    total = sums.samples if num_total_samples is None else num_total_samples
    factor = total / sums.samples
    seen = (sums.samples, total, sums.outputs_per_sample)
    check_reduced(curvature, trace, likelihood)
    known = None if trace is None else trace * factor
    return Fitted(curvature.rescale(factor), sums.nll * factor, *seen, plan, tuple(sums.batch_nll), known)


def _reduced_in_memory(
    source: Source, options: FitOptions, key: Array
) -> tuple[Operator, DataSums, float | None, Plan | None]:
    """:func:`_reduced`, begun anew on smaller batches where memory runs out."""
    passes, size = source.passes, 0
    while True:
        try:
            return _reduced(source, options, key)
        except jax.errors.JaxRuntimeError as error:
            size = half_after(error, size or batch_size(passes.peek()), "the fit")
            source = dataclasses.replace(source, passes=SmallerPasses(passes, size))


def _reduced(source: Source, options: FitOptions, key: Array) -> tuple[Operator, DataSums, float | None, Plan | None]:
    """The curvature, what its passes added up, its trace where that is known, and the plan of a low rank."""
    params, passes = source.params, source.passes
    trunk, head = split(source.model_fn, params, example_shapes(passes.peek().input))
    passes = passes if trunk is None else FeaturePasses(trunk, passes)
    model = as_jit_argument(with_fast_convolutions(head))
    curved = with_curvature(options.curvature, model, params, source.likelihood, passes, key)
    source = Source(model, params, *curved, source.checkpoint)
    check_memory(source, options.structure, options.rank)
    plan = None if options.structure in ("full", "diag") else _noted(make_plan(source, options), options, source)
    if plan is not None and plan.strategy == "products":
        return *_low_rank(source, options, plan, key), plan
    if options.curvature == "ggn":
        warn_of_many_outputs(source)
    ordered, order = source.in_order_of_gradients
    curvature, sums, trace = _by_rows(ordered, options, plan, key)
    return curvature if order.as_stored else curvature.permute(order.places(params)), sums, trace, plan


def _of_all_rows(options: FitOptions, model_fn: ModelFn, params: Params, passes: LoaderPasses) -> FitOptions:
    """A posterior in function space on few samples as the one over weights, with every row of their curvature."""
    passes.preload()
    example, size = example_shapes(passes.peek().input), get_size(params)
    rows = (passes.num_samples or size) * math.prod(jax.eval_shape(model_fn, example, params).shape)
    if rows >= size:
        return dataclasses.replace(options, structure="full", method="auto")
    how = {"tolerance": 0.0, "rows_bytes": _ROWS_BYTES}
    return dataclasses.replace(options, structure="lowrank", method="gram", rank=rows, **how)


def make_plan(source: Source, options: FitOptions) -> Plan:
    """The method asked for, or the cheapest; the cost model also chooses how blocks of vectors meet the data."""
    if options.structure != "lowrank":
        ordered, _ = source.in_order_of_gradients
        how = {"rank": options.rank, "method": options.method, "rows_bytes": options.rows_bytes}
        how |= {"low_rank": options.structure == "kron_lowrank", "approximation": options.kfac_approx}
        return plan_kronecker(ordered, **how)
    if options.method == "gram":
        return Plan("gram", "rows", "asked for")
    if options.method in ("lanczos", "block_lanczos"):
        return Plan(options.method, "products", "asked for")
    ordered, _ = source.in_order_of_gradients
    problem = problem_of(ordered, rank=options.rank, rows_bytes=options.rows_bytes, tolerance=options.tolerance)
    if options.method == "lobpcg":
        return Plan("lobpcg", cheapest(problem, "products", "jacobians"), "asked for")
    plan = choose(problem)
    if options.method == "auto" or plan.method == "nystrom":
        return plan
    return Plan("nystrom", cheapest(problem), "asked for")


def _noted(plan: Plan, options: FitOptions, source: Source) -> Plan:
    """The plan of a low rank alone, saying where the rank is as large as the matrix."""
    if options.structure != "lowrank" or options.rank < get_size(source.params):
        return plan
    return dataclasses.replace(plan, reason=f"rank {options.rank} (all there are): {plan.reason}")


def _by_rows(
    source: Source, options: FitOptions, plan: Plan | None, key: Array
) -> tuple[Operator, DataSums, float | None]:
    structure = options.structure
    if plan is not None and structure == "lowrank":
        return _low_rank(source, options, plan, key)
    if structure == "kron" or structure == "ekfac" or structure == "kron_lowrank":
        curvature, sums = _kronecker(source, structure, options, plan, key)
    else:
        curvature, sums = source.matrix() if structure == "full" else source.diagonal()
    return curvature, sums, None if structure == "kron" else float(curvature.trace())


def _low_rank(source: Source, options: FitOptions, plan: Plan, key: Array) -> tuple[LowRank, DataSums, float | None]:
    if plan.method == "gram":
        return _gram(source.rows(options.tolerance), options)
    if plan.method == "nystrom":
        return _nystrom(source, options, plan, key)
    return *_krylov(source, options, plan, key), None


def _kronecker(
    source: Source, structure: KroneckerStructure, options: FitOptions, plan: Plan | None, key: Array
) -> tuple[Operator, DataSums]:
    how = {"tolerance": options.tolerance, "rows_bytes": options.rows_bytes, "rank": options.rank, "key": key}
    how |= {"passes": options.passes, "exact": plan is not None and plan.method == "gram"}
    return fit_kronecker(source, structure, approximation=options.kfac_approx, **how)


def _gram(stream: RowStream, options: FitOptions) -> tuple[LowRank, DataSums, float]:
    rows = stream.matrix(options.rows_bytes)
    return gram(rows, rank=options.rank), stream.sums, float(jnp.square(rows).sum())


def _nystrom(source: Source, options: FitOptions, plan: Plan, key: Array) -> tuple[LowRank, DataSums, float | None]:
    repeated, traces = options.passes > 1, []
    if plan.strategy == "rows":
        stream = source.rows(options.tolerance, repeated=repeated)

        def block(rows: Float[Array, "K P"]) -> Float[Array, "K P"]:
            image, trace = stream.fold(_add_sketch, (jnp.zeros_like(rows), jnp.zeros((), rows.dtype)), rows)
            traces[:] = [float(trace)]
            return image

    else:
        stream = source.blocks(plan, repeated=repeated, keep_bytes=options.keep_bytes)
        block = stream.block
    product = source.logged(block, lambda: stream.sums, repeated=repeated)
    size = get_size(source.params)
    found = nystrom(product, size, rank=options.rank, key=key, passes=options.passes, dtype=source.dtype)
    return found, product.sums, traces[0] if traces else None


def _krylov(source: Source, options: FitOptions, plan: Plan, key: Array) -> tuple[LowRank, DataSums]:
    size, rank = get_size(source.params), options.rank
    if plan.method == "lobpcg":
        stream = source.blocks(plan, repeated=True, keep_bytes=options.keep_bytes)
        block = source.logged(stream.block, lambda: stream.sums)
        return lobpcg(block, size, rank=rank, key=key, dtype=source.dtype), block.sums
    products = source.products(repeated=True, keep_bytes=options.keep_bytes)
    if plan.method == "lanczos":
        layout = jnp.zeros_like(jax.tree.leaves(source.params)[0], source.dtype, (size,))  # on the parameters' device
        single = source.logged(products.product, lambda: products.sums)
        found = lanczos(single, layout, rank=rank, key=key, mv_jit=False, progress=options.progress)
        return found, single.sums
    block = source.logged(products.block, lambda: products.sums)
    shown = {"dtype": source.dtype, "progress": options.progress}
    return block_lanczos(block, size, rank=rank, key=key, **shown), block.sums


def _add_sketch(carry: tuple[Array, Array], rows: Array, basis: Array) -> tuple[Array, Array]:
    image, trace = carry
    return image + (rows @ basis.T).T @ rows, trace + jnp.square(rows).sum()
