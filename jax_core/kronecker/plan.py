"""What becomes of each parameter, and how the low rank beside the blocks is found, said before the work."""

from __future__ import annotations

import jax

from jax_core.data.trees import get_size
from jax_core.kronecker.layers import find_layers
from jax_core.kronecker.steps import KfacApprox
from jax_core.lowrank.plan import Plan, choose
from jax_core.source import Source, problem_of
from jax_core.xla.chunks import example_shapes


def plan_kronecker(
    source: Source, *, low_rank: bool, approximation: KfacApprox, rank: int, method: str, rows_bytes: int
) -> Plan:
    """The plan of a Kronecker structure, whose parameters are in the order of gradients.

    Args:
        source: The model and its data.
        low_rank: Whether a low rank is taken out before.
        approximation: Of the factors.
        rank: Its eigenpairs; as many as there are parameters at most.
        method: ``"gram"``, ``"nystrom"``, or ``"auto"``: the first where rows are few.
        rows_bytes: Memory for all rows.
    """
    layers = _described(source, approximation)
    if not low_rank:
        return Plan("factors", "rows", f"{layers}.")
    size = get_size(source.params)
    rank = min(rank, size)
    exact = method == "gram"
    if method == "auto":
        exact = choose(problem_of(source, rank=rank, rows_bytes=rows_bytes, tolerance=0.0)).method == "gram"
    how = "all rows, of which none is dropped" if exact else "a sketch"
    reason = f"rank {rank}{' (all there are)' if rank == size else ''} from {how}, the rest in {layers}."
    return Plan("gram" if exact else "nystrom", "rows", reason)


def _described(source: Source, approximation: KfacApprox) -> str:
    """Which parameters have Kronecker blocks, and which do not, for a plan."""
    layers = find_layers(source.model_fn, source.params, example_shapes(source.passes.peek().input))
    paths = jax.tree_util.tree_flatten_with_path(source.params)[0]
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]
    plain = layers.layout.plain
    dense = [slot for slot in plain if layers.is_dense(slot)]
    by_rows = [slot for slot in plain if layers.rows(slot)]
    rest = [names[slot.leaf] for slot in plain if slot not in dense and slot not in by_rows]
    blocks = len(layers.layout.factored)
    found = f"{blocks} Kronecker block{'' if blocks == 1 else 's'}"
    found += " (kfac_approx='reduce')" if approximation == "reduce" else ""
    none = " (of parameters that are no matrix of products alone)"
    found += f", {len(dense)} dense{none}" if dense else ""
    found += f", {len(by_rows)} of a dense block for each row{'' if dense else none}" if by_rows else ""
    return found + (f", and a diagonal for {_listed(rest)}, which are none either" if rest else "")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
