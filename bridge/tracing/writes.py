"""Make an exported graph functional, where nothing but in-place operators looks at the memory that they write."""

from __future__ import annotations

import collections
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch.multiprocessing.reductions import StorageWeakRef

from bridge.tracing.errors import TraceError
from bridge.tracing.interpreter import computing, has_lowering, tensors, where
from bridge.tracing.lowering import LOWERINGS

aten = torch.ops.aten


def without_writes(graph: fx.Graph) -> bool:
    """Turn `relu_` into `relu` and so on; False, and the graph as it was, where that is not the whole story.

    Functionalising in torch retraces the graph, which takes longer than exporting it; this reads it once. It holds
    where every operator has a lowering, and no write reaches an input, a parameter or a value with earlier views.
    """
    nodes = computing(graph)
    plain = {node: _plain(node.target) for node in nodes if _writes(node.target)}
    if any(target not in LOWERINGS for target in plain.values()):
        return False
    if any(_updates_statistics(node) or not has_lowering(node) for node in nodes if node not in plain):
        return False
    written = _written(graph.nodes, [node for node in plain if not _is_idle(node)])
    if written is None:
        return False
    latest: dict[StorageWeakRef, fx.Node] = {}
    for node in graph.nodes:
        for source in node.all_input_nodes:
            if source in written:
                node.replace_input_with(source, latest[written[source]])
        if node in written:
            latest[written[node]] = node
        if node in plain:
            node.target = plain[node]
    return True


def drop_last_copies(graph: fx.Graph) -> None:
    """Drop the copies into inputs that nothing reads, with which a graph ends.

    For a buffer that a forward makes when it runs first, export writes such a copy into whatever input stands where
    the buffer would: of another shape, or of another meaning.
    """
    for node in reversed(list(graph.nodes)):
        if node.op == "output":
            continue
        copies = node.target is aten.copy_.default and not node.users
        if not copies or not isinstance(node.args[0], fx.Node) or node.args[0].op != "placeholder":
            return
        graph.erase_node(node)


def check_detached_writes(graph: fx.Graph) -> None:
    """Refuse writes through `detach()` or `.data` into what is read afterwards: torch's gradients pass them by.

    A functional graph has one value for the changed tensor, whose derivative is either cut or that of the write.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in computing(graph):
        if not _writes(node.target) or not node.args or _is_idle(node):
            continue
        source: Any = node.args[0]
        while isinstance(source, fx.Node) and source.op == "call_function" and source.args:
            read_after = any(order[user] > order[node] for user in getattr(source.args[0], "users", ()))
            if source.target in (aten.detach.default, aten.detach_.default) and read_after:
                raise TraceError(
                    f"The model writes into a tensor through detach() or .data, by {node.target} ({where(node)}), and "
                    "reads it afterwards: torch takes gradients as if nothing had been written. Compute a new tensor "
                    "instead, as h = h + (f(h) - h).detach()."
                )
            source = source.args[0] if source.target in _SAME_MEMORY else None


_SAME_MEMORY = {
    *(aten.detach.default, aten.view.default, aten.select.int, aten.slice.Tensor, aten.transpose.int),
    *(aten.permute.default, aten.alias.default, aten.unsqueeze.default, aten.squeeze.dim, aten.t.default),
}


def _written(nodes: Iterable[fx.Node], writes: Collection[fx.Node]) -> dict[fx.Node, StorageWeakRef] | None:
    """The memory of each written value: the node that made it, then those that wrote it. None where others see it."""
    members: dict[StorageWeakRef, list[fx.Node]] = collections.defaultdict(list)
    for node in nodes:
        for memory in {StorageWeakRef(tensor.untyped_storage()) for tensor in tensors(node)}:
            members[memory].append(node)
    found: dict[fx.Node, StorageWeakRef] = {}
    for memory, sharing in members.items():
        last = max((i for i, node in enumerate(sharing) if node in writes), default=0)
        if last == 0:
            continue
        # later views read what the last write left
        made, *wrote = sharing[: last + 1]
        if made.op != "call_function" or any(node not in writes for node in wrote):
            return None
        found.update(dict.fromkeys([made, *wrote], memory))
    return found if all(node in found for node in writes) else None


def _writes(target: Any) -> bool:
    return isinstance(target, OpOverload) and target._schema.is_mutable


def _plain(target: Any) -> OpOverload | None:
    """The operator that returns what `target` writes into its first argument, if it is such a one."""
    schema = target._schema
    wrote = [i for i, argument in enumerate(schema.arguments) if argument.alias_info and argument.alias_info.is_write]
    name = schema.name.removeprefix("aten::")
    if wrote != [0] or len(schema.returns) != 1 or not name.endswith("_"):
        return None
    return getattr(getattr(aten, name[:-1], None), target._overloadname, None)


def _is_idle(node: fx.Node) -> bool:
    """Whether a write changes nothing: dropout in eval mode, which stands behind views in classifiers."""
    return node.target is aten.dropout_.default and not node.args[2]


def _updates_statistics(node: fx.Node) -> bool:
    """Whether a normalisation moves its running statistics, which its schema does not say."""
    if node.target not in (aten.batch_norm.default, aten.instance_norm.default):
        return False
    mean, by_batch = node.args[3], node.args[5]
    return mean is not None and bool(by_batch)
