r"""Which way to a low rank is cheapest: a cost model in floating-point operations.

Three ways lead to the leading eigenpairs of $G = R^\top R$:

* ``gram``: all rows in memory, eigenpairs of the small $R R^\top$. Exact; rows must be few.
* ``nystrom`` by ``rows``: one gradient per row, then two dense products with the block of random vectors.
* ``nystrom`` by ``products``: the block pushed forward and back through the network, no gradient per sample.

With $F$ the operations of one forward pass, $P$ parameters, $k$ vectors and $r$ rows per sample, a sample costs
$r (3F + 4Pk)$ by rows and $4Fk$ by products. Dense products run about twice as fast as a network's passes do, but
every block of rows reads the random vectors and updates their images once: where a single row fills the block (many
parameters), that traffic is what rows cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jax_core.footprint import rows_per_block

_DENSE_SPEED = 2.0  # dense products over network passes, operations per second, measured on a CPU
_FLOPS_PER_BYTE = 20.0  # operations done while one byte comes from memory
_GRAM_ROWS = 2000  # the Gram matrix is diagonalised on the host in float64: seconds from here on
_MOST_OUTPUTS = 256  # loss Hessians are diagonalised per sample


@dataclass(frozen=True)
class Plan:
    """A method, how it touches the data, and why.

    Attributes:
        method: ``"gram"``, ``"nystrom"``, ``"lanczos"``, ``"block_lanczos"`` or ``"lobpcg"``.
        strategy: ``"rows"`` (gradients of single outputs) or ``"products"`` (the network's Jacobian products).
        reason: One sentence with the figures behind the choice.
    """

    method: Literal["gram", "nystrom", "lanczos", "block_lanczos", "lobpcg"]
    strategy: Literal["rows", "products"]
    reason: str


@dataclass(frozen=True)
class Problem:
    """What the choice depends on.

    Attributes:
        size: Parameters.
        samples: Samples, or ``None`` while unknown (a loader that is streamed).
        outputs: Scalar outputs per sample.
        rows_per_sample: Rows that one sample contributes.
        forward_flops: Floating-point operations of one sample's forward pass.
        rank: Eigenpairs wanted.
        rows_bytes: Memory that rows may take.
        itemsize: Bytes of a number.
    """

    size: int
    samples: int | None
    outputs: int
    rows_per_sample: float
    forward_flops: float
    rank: int
    rows_bytes: int
    itemsize: int = 4


def by_rows(problem: Problem) -> bool:
    """Whether gradients of single rows are cheaper than products through the network."""
    if problem.outputs > _MOST_OUTPUTS:
        return False
    vectors = problem.rank * 1.1
    row_bytes = problem.itemsize * problem.size
    traffic = _FLOPS_PER_BYTE * 3 * vectors * row_bytes / rows_per_block(row_bytes)
    dense = 4 * problem.size * vectors / _DENSE_SPEED
    rows = problem.rows_per_sample * (3 * problem.forward_flops + dense + traffic)
    return rows <= 4 * problem.forward_flops * vectors


def choose(problem: Problem) -> Plan:
    """The cheapest way for a problem."""
    p = problem
    cost = f"{p.size:,} parameters, {p.rows_per_sample:.1f} rows a sample, {p.forward_flops / 1e6:.1f} Mflop a forward"
    rows = None if p.samples is None else p.samples * p.rows_per_sample
    if rows is not None and rows <= _GRAM_ROWS and rows * p.size * p.itemsize <= p.rows_bytes:
        return Plan(
            "gram", "rows", f"exact: all {rows:.0f} rows fit in memory and their Gram matrix is small ({cost})."
        )
    if by_rows(p):
        return Plan("nystrom", "rows", f"one pass; a gradient a row costs less than a product a vector ({cost}).")
    return Plan("nystrom", "products", f"one pass; a product a vector costs less than a gradient a row ({cost}).")
