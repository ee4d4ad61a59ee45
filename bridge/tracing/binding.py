"""Which value of the model each placeholder of an exported graph stands for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.core import Tracer
from jaxtyping import Array
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as torch_pytree

from bridge.tensors import to_jax
from bridge.tracing.errors import TraceError
from bridge.tracing.inputs import Signature
from bridge.tracing.interpreter import compile_steps, fixed_nodes, run_steps
from bridge.tracing.known import Known, described
from bridge.tracing.lowering import logical
from bridge.tracing.outputs import plain
from bridge.tracing.wide import overflows

_STATE = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


@dataclasses.dataclass(frozen=True)
class Binding:
    """The model's tensors by name, and how placeholders map to them."""

    params: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]
    names: dict[str, str]
    """From placeholders that the graph reads to the keys of `params` and `buffers`."""
    inputs: tuple[str, ...]
    """The placeholders of the user's inputs, in order."""


def bind(program: ExportedProgram, model: torch.nn.Module) -> Binding:
    """Read `program.graph_signature`: torch mixes parameters, buffers, constants and inputs in one list."""
    tensors = _tensors(program, model)
    first_names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first_names.setdefault(id(parameter), name)  # tied parameters go by their first name
    users = {node.name: node.users for node in program.graph.nodes if node.op == "placeholder"}

    params: dict[str, torch.Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    buffers: dict[str, torch.Tensor] = {}
    names: dict[str, str] = {}
    inputs = []
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            inputs.append(spec.arg.name)
        elif spec.kind not in _STATE:
            raise TraceError(f"Models with an input of kind {spec.kind} cannot be traced.")
        elif users[spec.arg.name]:
            tensor = tensors[str(spec.target)]
            name = names[spec.arg.name] = first_names.get(id(tensor), str(spec.target))
            if name not in params:
                buffers[name] = tensor
    _check_memory(params, buffers)
    return Binding(params, buffers, names, tuple(inputs))


def _check_memory(params: Mapping[str, torch.Tensor], buffers: Mapping[str, torch.Tensor]) -> None:
    """Refuse constants that are views of parameters: they change with them, and arrays would not."""
    for name, tensor in buffers.items():
        for owner, parameter in params.items():
            if _overlap(tensor, parameter):
                raise TraceError(
                    f"The constant {name!r} shares the memory of parameter {owner!r}, so that it changes with it while "
                    "its gradient does not reach it. Compute it from the parameter in forward, or keep a clone()."
                )


def _overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    if not a.numel() or not b.numel() or a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr():
        return False
    (a_start, a_end), (b_start, b_end) = _span(a), _span(b)
    return a_start < b_end and b_start < a_end


def _span(x: torch.Tensor) -> tuple[int, int]:
    last = sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()


def _tensors(program: ExportedProgram, model: torch.nn.Module) -> dict[str, Any]:
    return {
        **program.constants,
        **program.state_dict,
        **dict(model.named_buffers(remove_duplicate=False)),
        **dict(model.named_parameters(remove_duplicate=False)),
    }


def to_arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, Array]:
    """Copies, since the model may be trained further and an array must never change."""
    return {name: to_jax(tensor.detach().clone()) for name, tensor in tensors.items()}


def graph_function(program: ExportedProgram, binding: Binding, signature: Signature) -> Known:
    """The pure function `function(buffers, params, *inputs)` of an exported graph."""
    covered = {placeholder for placeholder, name in binding.names.items() if name in binding.params}
    steps, is_wide = compile_steps(program.graph, fixed_nodes(program.graph, covered)), overflows(program.graph)
    outputs = _outputs(program)
    template = _template(program)

    def function(buffers: Mapping[str, Array], params: Mapping[str, Array], *inputs: Any) -> Any:
        values: dict[str, Any] = dict(zip(binding.inputs, signature.flatten(inputs), strict=True))
        for placeholder, name in binding.names.items():
            values[placeholder] = params[name] if name in binding.params else buffers[name]
        if is_wide and not jax.config.read("jax_enable_x64"):
            leaves = _in_64_bits(lambda: compute(values), values)
        else:
            leaves = compute(values)
        return jax.tree.map(lambda index: leaves[index], template)

    def compute(values: dict[str, Any]) -> list[Any]:
        run_steps(steps, values)
        return [logical(values[item.name]) if isinstance(item, torch.fx.Node) else item for item in outputs]

    names = binding.inputs, binding.names, sorted(binding.params)
    return Known(function, described(steps, is_wide, outputs, template, names, signature))


def _in_64_bits(compute: Callable[[], list[Any]], values: dict[str, Any]) -> list[Any]:
    """Outputs of 32 bits of what is computed with integers of 64, as torch has them; floats stay what they are."""
    with jax.enable_x64(True):
        for name, value in values.items():
            if getattr(value, "dtype", None) == jnp.int32:
                values[name] = value.astype(jnp.int64)
        narrow = {jnp.dtype("int64"): jnp.int32, jnp.dtype("uint64"): jnp.uint32, jnp.dtype("float64"): jnp.float32}
        leaves = compute()
        for leaf in leaves:
            _check_narrow(leaf)
        return [x.astype(narrow.get(x.dtype, x.dtype)) if hasattr(x, "dtype") else x for x in leaves]


def _check_narrow(leaf: Any) -> None:
    """Raise where an integer output is known not to fit; inside `jit` nothing is known."""
    if getattr(leaf, "dtype", None) == jnp.int64 and not isinstance(leaf, Tracer) and leaf.size:
        largest = int(np.abs(np.asarray(leaf)).max())
        if largest > np.iinfo(np.int32).max:
            raise OverflowError(
                f"The model returns the integer {largest}, which int32 cannot hold. Enable JAX's 64-bit types: "
                "jax.config.update('jax_enable_x64', True)."
            )


def _outputs(program: ExportedProgram) -> list[Any]:
    """What the graph returns to the user, without the buffers that it updates."""
    node = next(node for node in program.graph.nodes if node.op == "output")
    kinds = [spec.kind for spec in program.graph_signature.output_specs]
    return [item for item, kind in zip(node.args[0], kinds, strict=True) if kind is OutputKind.USER_OUTPUT]


def _template(program: ExportedProgram) -> Any:
    """The structure of the outputs, with their positions for leaves."""
    spec = program.call_spec.out_spec
    assert spec is not None  # set by every export
    return plain(torch_pytree.tree_unflatten(list(range(spec.num_leaves)), spec))
