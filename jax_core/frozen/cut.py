"""The fewest bytes from which a program can go on: a minimum cut through what is cheap to compute anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend.core import Literal
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

LAYOUT = {"reshape", "broadcast_in_dim", "squeeze", "expand_dims", "copy", "iota"}
"""Primitives that move nothing, or are read as they are made."""
CHEAP = LAYOUT | {
    *("transpose", "slice", "pad", "concatenate", "rev", "convert_element_type", "select_n", "stop_gradient"),
    *("add", "add_any", "sub", "mul", "neg", "max", "min", "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not"),
}
"""Primitives that write about as much as they read, and compute next to nothing."""

_ENDLESS = 2**30


def smallest_cut(wanted: Sequence[Any], equations: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
    """Variables with the fewest bytes from which the wanted ones follow by cheap equations; late ones among equals.

    Args:
        wanted: Variables.
        equations: Of the program that makes them, in order.
        inputs: Of that program.
    """
    makers = {v: e for e in equations for v in e.outvars if e.primitive.name in CHEAP}
    known = {*inputs, *(v for e in equations for v in e.outvars)}
    met, waiting = dict.fromkeys(wanted), list(wanted)
    while waiting:
        for operand in _operands(makers.get(waiting.pop()), known):
            if operand not in met:
                met[operand] = None
                waiting.append(operand)
    places = {v: i for i, v in enumerate(met)}
    source, sink = 2 * len(places), 2 * len(places) + 1
    edges: dict[tuple[int, int], int] = {}
    for v, i in places.items():
        edges[2 * i, 2 * i + 1] = max(1, min(v.aval.size * v.aval.dtype.itemsize, _ENDLESS // (2 * len(places))))
        operands = _operands(makers.get(v), known)
        for operand in operands:
            edges[2 * places[operand] + 1, 2 * i] = _ENDLESS
        if not operands:
            edges[source, 2 * i] = _ENDLESS
    for v in wanted:
        edges[2 * places[v] + 1, sink] = _ENDLESS
    reaching = _reaching(edges, source, sink)
    return [v for v, i in places.items() if 2 * i + 1 in reaching and 2 * i not in reaching]


def _operands(equation: Any, known: set[Any]) -> list[Any]:
    """What of an equation's operands comes from the inputs."""
    given = () if equation is None else equation.invars
    return [v for v in given if not isinstance(v, Literal) and v in known]


def _reaching(edges: dict[tuple[int, int], int], source: int, sink: int) -> set[int]:
    """Vertices from which more could flow into the sink, with a maximum flow under way."""
    rows, columns = np.array(list(edges), np.int32).reshape(-1, 2).T
    capacity = csr_array((np.array([*edges.values()], np.int32), (rows, columns)), shape=(sink + 1, sink + 1))
    left = capacity - maximum_flow(capacity, source, sink).flow
    left.eliminate_zeros()
    return {int(v) for v in breadth_first_order(csr_array(left.T), sink, return_predecessors=False)}
