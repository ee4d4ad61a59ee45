"""Which value of the model each placeholder of an exported graph stands for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import torch
from jaxtyping import Array
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind
from torch.utils import _pytree as torch_pytree

from bridge.tensors import to_jax
from bridge.tracing.interpreter import compile_steps, run_steps
from bridge.tracing.lowering import logical
from bridge.tracing.traced_model import InputSpec

_STATE = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


@dataclasses.dataclass(frozen=True)
class Binding:
    """The model's tensors by name, and how placeholders map to them and to the inputs."""

    params: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]
    names: dict[str, str]
    """From placeholders to the keys of `params` and `buffers`."""
    placeholders: tuple[str, ...]
    """The placeholders of the user's inputs, in order."""
    specs: tuple[InputSpec | None, ...]
    """What each input must look like; None for one that is no tensor."""
    constants: tuple[Any, ...]
    """The values of inputs that are no tensors: the graph holds for these alone."""


def bind(program: ExportedProgram, model: torch.nn.Module) -> Binding:
    """Read `program.graph_signature`: torch mixes parameters, buffers, constants and inputs in one list."""
    first_names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first_names.setdefault(id(parameter), name)  # tied parameters go by their first name
    tensors: dict[str, Any] = {**program.constants, **program.state_dict}
    tensors.update(model.named_buffers(remove_duplicate=False))
    tensors.update(model.named_parameters(remove_duplicate=False))
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}

    params: dict[str, torch.Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    buffers: dict[str, torch.Tensor] = {}
    names: dict[str, str] = {}
    placeholders, specs, constants = [], [], []
    for spec in program.graph_signature.input_specs:
        node = nodes[spec.arg.name]
        if spec.kind in _STATE:
            tensor = tensors[str(spec.target)]
            name = names[node.name] = first_names.get(id(tensor), str(spec.target))
            if name not in params and node.users:
                buffers[name] = tensor
        elif spec.kind is InputKind.USER_INPUT:
            placeholders.append(node.name)
            if isinstance(spec.arg, ConstantArgument):
                specs.append(None)
                constants.append(spec.arg.value)
            else:
                specs.append(_input_spec(node.name, node.meta["val"]))
                constants.append(None)
        else:
            raise NotImplementedError(f"Models with an input of kind {spec.kind} cannot be traced.")
    return Binding(params, buffers, names, tuple(placeholders), tuple(specs), tuple(constants))


def to_arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, Array]:
    """Copies, since the model may be trained further and an array must never change."""
    return {name: to_jax(tensor.detach().clone()) for name, tensor in tensors.items()}


def graph_function(program: ExportedProgram, binding: Binding) -> Callable[..., Any]:
    """The pure function `function(buffers, params, *inputs)` of an exported graph."""
    steps = compile_steps(program.graph)
    used = [name for name, node in _placeholder_nodes(program) if node.users]
    outputs = _outputs(program)
    template = _template(program)
    assert program.call_spec.in_spec is not None  # set by every export
    keywords = tuple(program.call_spec.in_spec.child(1).context)

    def function(buffers: Mapping[str, Array], params: Mapping[str, Array], *inputs: Any) -> Any:
        values: dict[str, Any] = {}
        for placeholder, leaf in zip(binding.placeholders, _input_leaves(binding, keywords, inputs), strict=True):
            values[placeholder] = leaf
        for placeholder in used:
            if placeholder in binding.names:
                name = binding.names[placeholder]
                values[placeholder] = params[name] if name in binding.params else buffers[name]
        run_steps(steps, values)
        leaves = [logical(values[item.name]) if isinstance(item, torch.fx.Node) else item for item in outputs]
        return jax.tree.map(lambda index: leaves[index], template)

    return function


def _placeholder_nodes(program: ExportedProgram) -> list[tuple[str, torch.fx.Node]]:
    return [(node.name, node) for node in program.graph.nodes if node.op == "placeholder"]


def _input_spec(name: str, value: torch.Tensor) -> InputSpec:
    shape = tuple(None if isinstance(n, torch.SymInt) else int(n) for n in value.shape)
    return InputSpec(name, shape, str(value.dtype).removeprefix("torch."))


def _input_leaves(binding: Binding, keywords: tuple[str, ...], inputs: tuple[Any, ...]) -> list[Any]:
    """The leaves of the inputs in the graph's order, checked."""
    given: Any = (inputs, {})
    if keywords:
        if len(inputs) != 1 or not isinstance(inputs[0], Mapping) or set(inputs[0]) != set(keywords):
            raise TypeError(f"The model was traced with keyword inputs: give one mapping with keys {list(keywords)}.")
        given = ((), {name: inputs[0][name] for name in keywords})
    leaves = torch_pytree.tree_leaves(given)
    if len(leaves) != len(binding.specs):
        raise TypeError(f"The model was traced with {len(binding.specs)} inputs, got {len(leaves)}.")
    checked = []
    for leaf, spec, constant in zip(leaves, binding.specs, binding.constants, strict=True):
        if spec is None and not (leaf is constant or leaf == constant):
            raise ValueError(
                f"An input was {constant!r} when the model was traced and is {leaf!r} now. "
                "Inputs that are not tensors are fixed by tracing: trace the model again."
            )
        checked.append(leaf if spec is None else spec.check(leaf))
    return checked


def _outputs(program: ExportedProgram) -> list[Any]:
    """What the graph returns to the user, without the buffers that it updates."""
    node = next(node for node in program.graph.nodes if node.op == "output")
    kinds = [spec.kind for spec in program.graph_signature.output_specs]
    return [item for item, kind in zip(node.args[0], kinds, strict=True) if kind is OutputKind.USER_OUTPUT]


def _template(program: ExportedProgram) -> Any:
    """The structure of the outputs, with their positions for leaves."""
    spec = program.call_spec.out_spec
    assert spec is not None  # set by every export
    return _plain(torch_pytree.tree_unflatten(list(range(spec.num_leaves)), spec))


def _plain(tree: Any) -> Any:
    """Dicts, lists and tuples in the place of classes that JAX does not know."""
    if isinstance(tree, Mapping):
        return {key: _plain(value) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*map(_plain, tree))
    if isinstance(tree, (list, tuple)):
        return type(tree)(map(_plain, tree))
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return {field.name: _plain(getattr(tree, field.name)) for field in dataclasses.fields(tree)}
    return tree
