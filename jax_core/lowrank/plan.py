r"""Which way to a low rank is cheapest: a cost model in floating-point operations.

Four ways lead to the leading eigenpairs of $G = R^\top R = \sum_i J_i^\top H_i J_i$:

* ``gram``: all rows in memory, eigenpairs of the small $R R^\top$. Exact; rows must be few.
* ``nystrom`` by ``rows``: one gradient per row, then two dense products with the block of random vectors.
* ``nystrom`` by ``jacobians``: the gradients of all outputs, those of some layers in factors, then the same.
* ``nystrom`` by ``products``: the block pushed forward and back through the network, no gradient per sample.

With $F$ the operations of one forward pass, $P$ parameters of which $Q$ are outside layers that stay in factors and
$D$ those inside (each counted for every vector that it multiplies), $k$ vectors, $C$ outputs and $r$ rows per sample,
a sample costs $r (3F + 4Pk)$ by rows, $3CF + 4CQk + 4Dk$ by Jacobians and $4Fk$ by products. Dense products run about
twice as fast as a network's passes do, but every block of rows reads the random vectors and updates their images once:
where a few rows fill the block (many parameters), that traffic is what they cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from jax_core.xla.chunks import examples_per_block, rows_per_block

_DENSE_SPEED = 2.0  # dense products over network passes, operations per second, measured on a CPU
_FLOPS_PER_BYTE = 20.0  # operations done while one byte comes from memory
_GRAM_ROWS = 2000  # the Gram matrix is diagonalised on the host in float64: seconds from here on
_MOST_OUTPUTS = 256  # loss Hessians are diagonalised per sample


Strategy: TypeAlias = Literal["rows", "jacobians", "products"]


@dataclass(frozen=True)
class Plan:
    """A method, how it touches the data, and why.

    Attributes:
        method: ``"gram"``, ``"nystrom"``, ``"lanczos"``, ``"block_lanczos"`` or ``"lobpcg"``; ``"factors"`` where only
            Kronecker factors are wanted.
        strategy: ``"rows"`` (gradients of single outputs), ``"jacobians"`` (of all outputs, some layers in factors)
            or ``"products"`` (the network's Jacobian products).
        reason: One sentence with the figures behind the choice.
    """

    method: Literal["gram", "nystrom", "lanczos", "block_lanczos", "lobpcg", "factors"]
    strategy: Strategy
    reason: str


@dataclass(frozen=True)
class Problem:
    """What the choice depends on.

    Attributes:
        size: Parameters.
        plain: Parameters outside layers that stay in factors.
        factored: Parameters inside them, each counted for every vector of an example that its matrix multiplies.
        samples: Samples, or ``None`` while unknown (a loader that is streamed).
        outputs: Scalar outputs per sample.
        rows_per_sample: Rows that one sample contributes.
        forward_flops: Floating-point operations of one sample's forward pass.
        rank: Eigenpairs wanted.
        rows_bytes: Memory that rows may take.
        itemsize: Bytes of a number.
    """

    size: int
    plain: int
    factored: int
    samples: int | None
    outputs: int
    rows_per_sample: float
    forward_flops: float
    rank: int
    rows_bytes: int
    itemsize: int = 4


def costs(problem: Problem) -> dict[Strategy, float]:
    """Operations a sample of each way through the data, those of dense products counted by their speed."""
    p, vectors = problem, problem.rank * 1.1
    found: dict[Strategy, float] = {"products": 4 * p.forward_flops * vectors}
    if p.outputs <= _MOST_OUTPUTS:
        row_bytes = p.itemsize * p.size
        traffic = _FLOPS_PER_BYTE * 3 * vectors * row_bytes  # of reading vectors and images for a block
        dense = 4 * p.size * vectors / _DENSE_SPEED
        found["rows"] = p.rows_per_sample * (3 * p.forward_flops + dense + traffic / rows_per_block(row_bytes))
        mixed = 4 * (p.outputs * p.plain + p.factored) * vectors / _DENSE_SPEED
        block = examples_per_block(p.itemsize * p.outputs * p.plain)
        found["jacobians"] = 3 * p.outputs * p.forward_flops + mixed + traffic / block
    return found


def cheapest(problem: Problem, *among: Strategy) -> Strategy:
    """The strategy with the fewest operations, of all or of those named."""
    found = costs(problem)
    return min((way for way in found if not among or way in among), key=lambda way: found[way])


def choose(problem: Problem) -> Plan:
    """The cheapest way for a problem."""
    p = problem
    cost = f"{p.size:,} parameters, {p.rows_per_sample:.1f} rows a sample, {p.forward_flops / 1e6:.1f} Mflop a forward"
    rows = None if p.samples is None else p.samples * p.rows_per_sample
    if rows is not None and rows <= _GRAM_ROWS and rows * p.size * p.itemsize <= p.rows_bytes:
        return Plan(
            "gram", "rows", f"exact: all {rows:.0f} rows fit in memory and their Gram matrix is small ({cost})."
        )
    found = costs(p)
    compared = ", ".join(f"{way} {flops / 1e6:.0f}" for way, flops in sorted(found.items(), key=lambda item: item[1]))
    return Plan("nystrom", cheapest(p), f"one pass; Mflop a sample: {compared} ({cost}).")
