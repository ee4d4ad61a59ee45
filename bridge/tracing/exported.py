"""Trace through `torch.export`: from the captured graph to a function with its tensors."""

from __future__ import annotations

import torch

from bridge.placement import lowered_for_device_of, place_of
from bridge.tracing.binding import bind, graph_function, to_arrays
from bridge.tracing.capture import capture
from bridge.tracing.guards import batch_sizes
from bridge.tracing.inputs import Inputs, make_signature
from bridge.tracing.known import Known, described
from bridge.tracing.traced_model import TracedModel


def trace_export(model: torch.nn.Module, inputs: Inputs, *, dynamic: bool = True) -> TracedModel:
    """Trace `model`, which must be in eval mode, by `torch.export`; unless `dynamic`, for this batch size alone."""
    program = capture(model, inputs, dynamic=dynamic)
    binding = bind(program, model)
    flags, sizes = batch_sizes(program, binding.inputs)
    signature = make_signature(inputs, flags, sizes)
    params, buffers = to_arrays(binding.params), to_arrays(binding.buffers)
    graph = graph_function(program, binding, signature)
    lowered = lowered_for_device_of(graph, (params, buffers))
    function = Known(lowered, described(graph, str(place_of((params, buffers)))))
    return TracedModel(params, buffers, function, signature.tensors, "export", sizes)
