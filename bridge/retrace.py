"""Whether a model is still the one that was traced, but for its weights: then its programs serve the next fit too."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from bridge.tracing import TracedModel
from bridge.tracing.binding import to_arrays

_TORCHS_OWN = {"_parameters", "_buffers", "_modules", "training"}


def described(model: nn.Module) -> tuple[Any, ...]:
    """What a trace depends on beside weights and inputs, to be compared: modules, their attributes, their tensors.

    Plain values are taken as they are, other objects by their identity: what changes inside one is not seen here. So
    what a kept trace computes is held against torch, like that of a new one.
    """
    modules = [
        (name, type(module), inspect.getattr_static(type(module), "forward", None), _attributes(module))
        for name, module in model.named_modules()
    ]
    names: dict[int, str] = {}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    looks = [
        (name, names.setdefault(id(t), name), tuple(t.shape), t.dtype, t.device, t.requires_grad) for name, t in tensors
    ]
    return tuple(modules), tuple(looks)


def refreshed(traced: TracedModel, model: nn.Module) -> TracedModel | None:
    """The traced model with the weights that its module has now, or ``None`` where some cannot be told by name."""
    named = {
        **dict(model.named_buffers(remove_duplicate=False)),
        **dict(model.named_parameters(remove_duplicate=False)),
    }
    several = traced.batch.carried or traced.batch.others
    if traced.tracer != "export" or several or not set(traced.params) <= set(named):
        return None
    params = to_arrays({name: named[name] for name in traced.params})
    buffers = to_arrays({name: named[name] for name in traced.buffers if name in named})
    # what is no tensor of a module is a constant of the graph
    return dataclasses.replace(traced, params=params, buffers={**traced.buffers, **buffers})


def _attributes(module: nn.Module) -> tuple[Any, ...]:
    return tuple((name, _look(value)) for name, value in vars(module).items() if name not in _TORCHS_OWN)


def _look(value: Any) -> Any:
    if isinstance(value, bool | int | float | str | bytes | type(None)):
        return value
    if isinstance(value, torch.Tensor):
        return id(value), value.data_ptr(), value._version
    if isinstance(value, list | tuple | set | frozenset):
        return type(value), *map(_look, value)
    if isinstance(value, Mapping):
        return type(value), *((key, _look(entry)) for key, entry in value.items())
    return id(value)
