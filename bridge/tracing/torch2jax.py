"""Trace through the package torch2jax (GPL-3.0 with exceptions), imported only when it is asked for.

It runs the model's own forward on objects that stand in for tensors. Functions that it lacks, or has wrong (its
`gelu` is the tanh formula), are lowered by this package's own table, through torch2jax's registration function.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import torch
import torch.nn.functional as F

from bridge.placement import lowered_for_device_of
from bridge.tensors import to_jax
from bridge.tracing.binding import to_arrays
from bridge.tracing.errors import TraceError
from bridge.tracing.inputs import Inputs, make_signature, split_arrays
from bridge.tracing.lowering import LOWERINGS, logical
from bridge.tracing.outputs import plain
from bridge.tracing.traced_model import TracedModel

aten = torch.ops.aten

# torch.nn.functional's functions beside the operators that they call with the same arguments
_SUPPLIED: dict[Callable[..., Any], Any] = {
    F.avg_pool1d: aten.avg_pool1d.default,
    F.avg_pool2d: aten.avg_pool2d.default,
    F.avg_pool3d: aten.avg_pool3d.default,
    F.adaptive_avg_pool1d: aten.adaptive_avg_pool1d.default,
    F.conv1d: aten.conv1d.default,
    F.conv3d: aten.conv3d.default,
    F.gelu: aten.gelu.default,
    F.group_norm: aten.group_norm.default,
    F.hardsigmoid: aten.hardsigmoid.default,
    F.hardswish: aten.hardswish.default,
    F.hardtanh: aten.hardtanh.default,
    F.leaky_relu: aten.leaky_relu.default,
    F.log_softmax: aten.log_softmax.int,
    F.mish: aten.mish.default,
    F.relu6: aten.relu6.default,
    F.silu: aten.silu.default,
    F.softmax: aten.softmax.int,
    F.softplus: aten.softplus.default,
    torch.log_softmax: aten.log_softmax.int,
    torch.softmax: aten.softmax.int,
}


def trace_torch2jax(model: torch.nn.Module, inputs: Inputs) -> TracedModel:
    """Trace `model`, which must be in eval mode, by running it on torch2jax's stand-ins for tensors."""
    package = _load()
    signature = make_signature(inputs)
    skeleton = _without_tensors(model)
    names = _slot_names(model)
    params: dict[str, torch.Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    buffers = {name: tensor for name, tensor in state.items() if name not in params}

    def run(tensors: Mapping[str, Any], leaves: list[Any]) -> Any:
        filled = copy.deepcopy(skeleton, _memo(skeleton))  # one call must not see another's stand-ins
        for (store, key), name in zip(_slots(filled), names, strict=True):
            store[key] = tensors[name]
        args, kwargs = signature.nest(leaves)
        outputs = plain(filled(*args, **kwargs))
        return _Result(jax.tree.map(_value, outputs, is_leaf=lambda x: isinstance(x, package.Torchish)))

    def function(buffers: Mapping[str, Any], params: Mapping[str, Any], *inputs: Any) -> Any:
        return package.t2j(run)({**buffers, **params}, _tensors_only(signature.flatten(inputs)))

    arrays = to_arrays(params), to_arrays(buffers)
    traced = TracedModel(*arrays, lowered_for_device_of(function, arrays), signature.tensors, "torch2jax")
    _try(traced, inputs)
    return traced


def _try(traced: TracedModel, inputs: Inputs) -> None:
    """Run the model once on shapes alone, to say what torch2jax lacks before anything is computed."""
    arrays, join = split_arrays(to_jax(inputs if isinstance(inputs, tuple) else (dict(inputs),)))
    try:
        jax.make_jaxpr(lambda params, arrays: traced.apply(params, *join(arrays)))(traced.params, arrays)
    except Exception as error:  # whatever the model's own code raises on a stand-in
        first = str(error).strip().split("\n", 1)[0]
        raise TraceError(f"torch2jax cannot trace this model: {type(error).__name__}: {first}") from error


def _tensors_only(leaves: list[Any]) -> list[Any]:
    # torch2jax would wrap flags and numbers too; `Signature.nest` puts them back from the example
    return [leaf if isinstance(leaf, jax.Array) else 0 for leaf in leaves]


@dataclasses.dataclass(frozen=True)
class _Result:
    """What torch2jax unpacks: it expects a single tensor and reads its `value`."""

    value: Any


def _value(leaf: Any) -> Any:
    return getattr(leaf, "value", leaf)


def _load() -> Any:
    try:
        import torch2jax
    except ImportError as error:
        raise TraceError(
            "tracer='torch2jax' needs the package torch2jax (GPL-3.0 with exceptions): pip install torch2jax, "
            "or use tracer='export'."
        ) from error
    for function, operator in _SUPPLIED.items():
        torch2jax.implements(function)(_supply(operator))
    if "__bool__" not in vars(torch2jax.Torchish):
        # without it every stand-in is true, and a branch on data silently takes its first arm
        setattr(torch2jax.Torchish, "__bool__", lambda self: bool(self.value))  # noqa: B010
    return torch2jax


def _supply(operator: Any) -> Callable[..., Any]:
    lowering = LOWERINGS[operator]

    def function(*args: Any, inplace: bool = False, _stacklevel: int = 3, **kwargs: Any) -> Any:
        if inplace:
            raise NotImplementedError(f"torch2jax drops the in-place write of {operator}. Use tracer='export'.")
        arguments = {name: _value(x) for name, x in kwargs.items() if x is not None}
        return logical(lowering(*(_value(x) for x in args if x is not None), **arguments))

    return function


def _slots(model: torch.nn.Module) -> Iterator[tuple[dict[str, Any], str]]:
    """Every place in the modules that holds a tensor, always in the same order."""
    for module in model.modules():
        for store in (module._parameters, module._buffers):
            for key, tensor in store.items():
                if tensor is not None:
                    yield store, key


def _slot_names(model: torch.nn.Module) -> list[str]:
    """The name of the tensor in each slot; tied ones go by their first name."""
    first: dict[int, str] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        first.setdefault(id(tensor), name)
    return [first[id(store[key])] for store, key in _slots(model)]


def _memo(model: torch.nn.Module) -> dict[int, Any]:
    """For `deepcopy`: copy the modules and share the tensors."""
    return {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}


def _without_tensors(model: torch.nn.Module) -> torch.nn.Module:
    return copy.deepcopy(model, _memo(model))
