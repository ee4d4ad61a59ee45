"""Trace through `torch.export`: from the captured graph to a function with its tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.export import ExportedProgram

from bridge.placement import lowered_for_device_of
from bridge.tracing.binding import bind, graph_function, to_arrays
from bridge.tracing.capture import capture
from bridge.tracing.inputs import Inputs, make_signature
from bridge.tracing.traced_model import TracedModel


def trace_export(model: torch.nn.Module, inputs: Inputs) -> TracedModel:
    """Trace `model`, which must be in eval mode, by `torch.export`."""
    program = capture(model, inputs)
    binding = bind(program, model)
    signature = make_signature(inputs, *open_axes(program, binding.inputs))
    params, buffers = to_arrays(binding.params), to_arrays(binding.buffers)
    function = lowered_for_device_of(graph_function(program, binding, signature), (params, buffers))
    return TracedModel(params, buffers, function, signature.tensors, "export")


def open_axes(program: ExportedProgram, names: Sequence[str]) -> tuple[list[bool], tuple[int, float]]:
    """Which inputs kept a symbolic axis 0, and the range of sizes that the graph holds for."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    ranges: dict[Any, Any] = program.range_constraints
    flags, low, high = [], 0, float("inf")
    for name in names:
        value = nodes[name].meta.get("val")
        size = value.shape[0] if isinstance(value, torch.Tensor) and value.ndim else None
        flags.append(False)
        if isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None:
            flags[-1] = True
            bounds = ranges[size.node.expr]
            # a lower bound of two is export's own assumption, not the model's
            low = max(low, int(bounds.lower) if bounds.lower > 2 else 0)
            high = min(high, float(bounds.upper) if bounds.upper.is_finite else high)
    return flags, (low, high)
