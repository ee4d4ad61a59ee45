"""Trace through `torch.export`: capture the ATen graph of a model with a dynamic batch axis."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.utils import _pytree as torch_pytree

from bridge.tracing.binding import bind, graph_function, to_arrays
from bridge.tracing.inputs import Inputs, batch_size, is_batched, make_signature
from bridge.tracing.lowering import LOWERINGS
from bridge.tracing.traced_model import TracedModel

aten = torch.ops.aten


def capture(model: torch.nn.Module, inputs: Inputs) -> ExportedProgram:
    """Export `model`, functionalised, with its composite operators kept whole where there is a lowering.

    The batch axis (axis 0 of every input tensor as long as the first one) is dynamic.
    """
    args, kwargs = (inputs, {}) if isinstance(inputs, tuple) else ((), dict(inputs))
    args, kwargs = _at_least_two(args, kwargs)
    shapes = _dynamic(model, args, kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about attributes of the module: nothing the caller could act on
        program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
        _restore_stop_gradient(program.graph)
        return program.run_decompositions(_decompositions())


def _at_least_two(args: Any, kwargs: Any) -> tuple[Any, Any]:
    # export would take a batch of one for a constant, and an empty one for nothing to trace
    size = batch_size((args, kwargs))
    if size is None or size > 1:
        return args, kwargs
    double = lambda x: torch.cat([x, x]) if is_batched(x, size) else x  # noqa: E731
    return torch_pytree.tree_map(double, (args, kwargs))


def _dynamic(model: torch.nn.Module, args: Any, kwargs: Any) -> Any:
    size = batch_size((args, kwargs))
    shapes = ShapesCollection()  # places each axis whatever the signature of forward: *args, defaults, mappings
    for leaf in torch_pytree.tree_leaves((args, kwargs)):
        if is_batched(leaf, size):
            shapes[leaf] = {0: Dim.AUTO}
    return shapes.dynamic_shapes(model, args, kwargs)


def _decompositions() -> dict[Any, Any]:
    """Torch's own table of decompositions, without the operators that have a lowering."""
    return {op: rule for op, rule in torch.export.default_decompositions().items() if op not in LOWERINGS}


def _restore_stop_gradient(graph: fx.Graph) -> None:
    """Cut the derivative of what was computed under `no_grad`, which decomposing would forget."""
    for node in list(graph.nodes):
        if node.target is not torch.ops.higher_order.wrap_with_set_grad_enabled or node.args[0]:
            continue
        for item in list(node.users):  # getitem nodes
            with graph.inserting_after(item):
                cut = graph.call_function(aten.detach.default, (item,))
            cut.meta = dict(item.meta)
            item.replace_all_uses_with(cut, delete_user_cb=lambda user, cut=cut: user is not cut)
    graph.lint()


def trace_export(model: torch.nn.Module, inputs: Inputs) -> TracedModel:
    """Trace `model`, which must be in eval mode, by `torch.export`."""
    program = capture(model, inputs)
    binding = bind(program, model)
    signature = make_signature(inputs, *_open_axes(program, binding.inputs))
    function = graph_function(program, binding, signature)
    return TracedModel(to_arrays(binding.params), to_arrays(binding.buffers), function, signature.tensors, "export")


def _open_axes(program: ExportedProgram, names: Sequence[str]) -> tuple[list[bool], tuple[int, float]]:
    """Which inputs kept a symbolic axis 0, and the range of sizes that the graph holds for."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    ranges: dict[Any, Any] = program.range_constraints
    flags, low, high = [], 0, float("inf")
    for name in names:
        value = nodes[name].meta.get("val")
        size = value.shape[0] if isinstance(value, torch.Tensor) and value.ndim else None
        is_open = isinstance(size, torch.SymInt) and not size.node.is_constant()
        flags.append(is_open)
        if is_open:
            bounds = ranges[size.node.expr]
            # a lower bound of two is export's own assumption, not the model's
            low = max(low, int(bounds.lower) if bounds.lower > 2 else 0)
            high = min(high, float(bounds.upper) if bounds.upper.is_finite else high)
    return flags, (low, high)
