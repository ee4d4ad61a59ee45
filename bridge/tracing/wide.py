"""Whether a graph computes integers that 32 bits may not hold, which JAX has alone unless its x64 mode is on."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

_LARGE = 2**30  # constants from here on, added to an index, may pass the largest 32-bit integer
# operators whose results may be much larger than what they are given
_GROWING = {
    *("aten.mul", "aten.pow", "aten.square", "aten.prod", "aten.cumprod", "aten.mm", "aten.bmm", "aten.matmul"),
    *("aten.bitwise_left_shift", "aten.__lshift__", "aten.linear", "aten.einsum"),
}
_CASTS = {"aten._to_copy", "aten.to"}
_PLACES = {"aten.slice", "aten.slice_scatter"}  # whose largest integers stand for the end


def overflows(graph: fx.Graph) -> bool:
    """Whether `graph` should be run in 64-bit mode: products of integers that come from the data, huge constants."""
    data: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder":
            data.add(node)
        elif node.op == "call_function":
            name = str(getattr(node.target, "overloadpacket", ""))
            if name not in _PLACES and any(abs(n) > 2**31 - 1 for n in _integers(node)) and _is_tensor(node):
                return True
            if any(source in data for source in node.all_input_nodes):
                if _is_long(node) and _is_risky(node, name):
                    return True
                if not name.startswith("aten.sym_") and not _counts(node):
                    data.add(node)
    return False


def _is_risky(node: fx.Node, name: str) -> bool:
    sources = [source.meta.get("val") for source in node.all_input_nodes]
    if name in _CASTS:
        return any(isinstance(value, torch.Tensor) and value.is_floating_point() for value in sources)
    if name in ("aten.add", "aten.sub", "aten.rsub"):
        return any(abs(n) >= _LARGE for n in _integers(node))
    return name in _GROWING and any(_holds_long(value) for value in sources)


def _counts(node: fx.Node) -> bool:
    """Whether a node's values are places or truth values, which are small whatever the data are."""
    value = node.meta.get("val")
    name = str(getattr(node.target, "overloadpacket", ""))
    return name in ("aten.argmax", "aten.argmin", "aten.argsort") or (
        isinstance(value, torch.Tensor) and value.dtype is torch.bool
    )


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def _is_long(node: fx.Node) -> bool:
    return _holds_long(node.meta.get("val"))


def _holds_long(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype is torch.int64


def _integers(node: fx.Node) -> list[int]:
    """The integers among the arguments."""
    return [n for n in (*node.args, *node.kwargs.values()) if isinstance(n, int) and not isinstance(n, bool)]
