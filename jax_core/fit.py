"""From a model and its data to a reduced curvature: the one place where structure, method and data meet."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_core import trees
from jax_core.batches import Batch
from jax_core.compiled import as_data
from jax_core.curvature.data_loader_mv import LoaderPasses
from jax_core.curvature.ggn import create_ggn_mv_without_data
from jax_core.curvature.row_stream import RowStream, evaluate, finite_nll
from jax_core.likelihoods import Likelihood
from jax_core.lowrank import gram, lanczos, lobpcg, nystrom
from jax_core.lowrank.spectrum import check_rank
from jax_core.operators import Dense, Diagonal, Operator
from jax_core.trees import create_pytree_flattener, get_size
from jax_core.types import ModelFn, Params

Structure = Literal["lowrank", "full", "diag"]
Method = Literal["lanczos", "lobpcg", "nystrom", "gram"]


@dataclass(frozen=True)
class Fitted:
    """A curvature and what the same data says about the evidence.

    Attributes:
        curvature: The reduced GGN, scaled to ``num_total_samples``.
        nll: Negative log-likelihood summed over the data, scaled alike.
        num_samples: Samples seen.
        num_total_samples: Samples they stand for.
        outputs_per_sample: Scalar outputs of one sample.
    """

    curvature: Operator
    nll: float
    num_samples: int
    num_total_samples: int
    outputs_per_sample: int

    @property
    def num_outputs(self) -> int:
        """Scalar outputs that the total samples have."""
        return self.num_total_samples * self.outputs_per_sample


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How a curvature is reduced.

    Attributes:
        structure: ``"lowrank"``, ``"full"`` or ``"diag"``.
        method: For low rank: ``"lanczos"``, ``"lobpcg"``, ``"nystrom"`` or ``"gram"``.
        rank: Eigenpairs of a low-rank curvature.
        passes: Passes over the data of ``"nystrom"``.
        tolerance: Share of the loss curvature that may be dropped where gradients are taken row by row (see
            :mod:`jax_core.curvature.rows`); the other structures and methods drop nothing.
        rows_bytes: Rows are kept as a matrix when they fit into this.
        progress: Show progress bars.
    """

    structure: Structure = "lowrank"
    method: Method = "lanczos"
    rank: int = 100
    passes: int = 1
    tolerance: float = 1e-3
    rows_bytes: int = 2**29
    progress: bool = True

    def check(self, size: int) -> None:
        """Refuse what cannot work for a model of ``size`` parameters.

        Raises:
            ValueError: If the rank exceeds the number of parameters.
        """
        if self.structure == "lowrank":
            check_rank(self.rank, size)


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
    model = as_data(model_fn)
    options.check(get_size(params))
    source = _Source(model, params, likelihood, passes, options, key)
    reduce = {"lowrank": source.low_rank, "full": source.full, "diag": source.diagonal}[options.structure]
    curvature = reduce()
    total = source.num_samples if num_total_samples is None else num_total_samples
    factor = total / source.num_samples
    return Fitted(curvature.rescale(factor), source.nll * factor, source.num_samples, total, source.num_outputs)


class _Source:
    """The data as rows and as products, and the sums that its first pass yields."""

    def __init__(
        self,
        model: ModelFn,
        params: Params,
        likelihood: Likelihood,
        passes: LoaderPasses,
        options: FitOptions,
        key: Array,
    ) -> None:
        self.model, self.params, self.likelihood = model, params, likelihood
        self.passes, self.options, self.key = passes, options, key
        self.nll, self.num_samples, self.num_outputs = 0.0, 0, 0

    def _stream(self, tolerance: float) -> RowStream:
        return RowStream(self.model, self.params, self.likelihood, self.passes, tolerance=tolerance)

    def _read_sums(self, stream: RowStream) -> None:
        self.nll, self.num_samples, self.num_outputs = stream.nll, stream.num_samples, stream.num_outputs

    def full(self) -> Operator:
        stream = self._stream(0.0)
        start = jnp.zeros((stream.size, stream.size), stream.dtype)
        matrix = stream.fold(_add_gram, start)
        self._read_sums(stream)
        return Dense.from_matrix(matrix).apply(lambda w: jnp.maximum(w, 0.0))

    def diagonal(self) -> Operator:
        stream = self._stream(0.0)
        diagonal = stream.fold(_add_squares, jnp.zeros(stream.size, stream.dtype))
        self._read_sums(stream)
        return Diagonal(diagonal)

    def low_rank(self) -> Operator:
        methods: dict[str, Callable[[], Operator]] = {
            "lanczos": self._lanczos,
            "lobpcg": self._lobpcg,
            "nystrom": self._nystrom,
            "gram": self._gram,
        }
        return methods[self.options.method]()

    def _nystrom(self) -> Operator:
        stream = self._stream(self.options.tolerance)

        def block(basis: Float[Array, "K P"]) -> Float[Array, "K P"]:
            image = stream.fold(_add_sketch, jnp.zeros_like(basis), basis)
            self._read_sums(stream)
            return image

        o = self.options
        return nystrom(block, stream.size, rank=o.rank, key=self.key, passes=o.passes, dtype=stream.dtype)

    def _gram(self) -> Operator:
        stream = self._stream(self.options.tolerance)
        rows = stream.matrix(self.options.rows_bytes)
        if rows is None:
            raise ValueError(
                f"method='gram' keeps one row per sample and output: more than {self.options.rows_bytes} bytes here. "
                "Use method='nystrom', fewer samples, or a larger rows_bytes."
            )
        self._read_sums(stream)
        return gram(rows, rank=self.options.rank)

    def _lanczos(self) -> Operator:
        o = self.options
        return lanczos(self._products(), self.params, rank=o.rank, key=self.key, mv_jit=False, progress=o.progress)

    def _lobpcg(self) -> Operator:
        product, (flatten, unflatten) = self._products(), create_pytree_flattener(self.params)

        def block(rows: Float[Array, "K P"]) -> Float[Array, "K P"]:
            return jnp.stack([flatten(product(unflatten(row))) for row in rows])

        size, dtype = get_size(self.params), jnp.result_type(*jax.tree.leaves(self.params))
        return lobpcg(block, size, rank=self.options.rank, key=self.key, dtype=dtype)

    def _products(self) -> Callable[[Params], Params]:
        """The product, batch by batch; its first use of the data sums the loss too."""
        for number, batch in enumerate(self.passes):
            outputs, nll = evaluate(self.model, self.params, self.likelihood, batch)
            self.nll += finite_nll(nll, number)
            self.num_samples += outputs.shape[0]
            self.num_outputs = outputs[0].size

        def product(vec: Params) -> Params:
            parts = (_product(self.model, self.params, self.likelihood, vec, batch) for batch in self.passes)
            return functools.reduce(trees.add, parts)

        return product


@jax.jit
def _product(model: ModelFn, params: Params, likelihood: Likelihood, vec: Params, batch: Batch) -> Params:
    return create_ggn_mv_without_data(model, params, likelihood)(vec, batch)


def _add_sketch(image: Array, rows: Array, basis: Array) -> Array:
    return image + (rows @ basis.T).T @ rows


def _add_gram(total: Array, rows: Array, extra: None) -> Array:
    return total + rows.T @ rows


def _add_squares(total: Array, rows: Array, extra: None) -> Array:
    return total + jnp.square(rows).sum(0)
