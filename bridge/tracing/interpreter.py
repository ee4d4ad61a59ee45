"""Run a captured ATen graph in JAX, one lowering per node."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax.numpy as jnp
import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from bridge.tensors import jax_dtype
from bridge.tracing.errors import LoweringError, MissingLoweringError, TraceError
from bridge.tracing.lowering import LOWERINGS, ChannelsLast, Lowering, logical

aten = torch.ops.aten

# arguments that say where and how torch stores a tensor, which arrays do not have
_STORAGE = {"device", "pin_memory", "layout", "memory_format", "non_blocking", "generator"}


# operators on two operands that torch brings to one dtype first
_ARITHMETIC = {
    f"aten.{name}" for name in ("add", "sub", "rsub", "mul", "div", "true_divide", "pow", "remainder", "fmod")
}
_COMPARISONS = {f"aten.{name}" for name in ("eq", "ne", "lt", "le", "gt", "ge")}

# operators with no value: checks that export writes into the graph
_CHECKS = {
    aten._assert_async.msg,
    aten._assert_scalar.default,
    aten._assert_tensor_metadata.default,
    aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
}


@dataclasses.dataclass(frozen=True)
class Step:
    """One node of the graph, ready to run."""

    name: str
    run: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dtypes: Any
    """The dtype torch gives to the result, or a list of them, or None where it is no tensor."""
    last_uses: tuple[str, ...]
    """Values that no later step reads."""
    operator: str = ""
    where: str = ""
    operands: torch.dtype | None = None
    """The dtype in which torch computes, where it is not that of every operand."""


def compile_steps(graph: fx.Graph, fixed: Collection[str] = ()) -> list[Step]:
    """The nodes of `graph` that compute something, with their lowerings; raises where one is missing.

    Those named in `fixed` are only run forward.
    """
    nodes = computing(graph)
    for node in nodes:
        if any(free_unbacked_symbols(value) for value in tensors(node)):
            raise TraceError(
                f"The shape of {node.target}'s result depends on the data ({where(node)}), and JAX has fixed shapes. "
                "Write it with torch.where or a mask."
            )
    last_reader: dict[str, str] = {}
    for node in graph.nodes:
        for source in node.all_input_nodes:
            last_reader[source.name] = node.name
    dying: dict[str, list[str]] = {}
    for source, reader in last_reader.items():
        dying.setdefault(reader, []).append(source)
    return [
        Step(
            node.name,
            _fixed_function(node) if node.name in fixed else _function(node),
            tuple(node.args),
            {key: value for key, value in node.kwargs.items() if key not in _STORAGE},
            _dtypes(node),
            tuple(dying.get(node.name, ())),
            str(node.target),
            f"({where(node)})",
            _operand_dtype(node),
        )
        for node in nodes
    ]


def run_steps(steps: Sequence[Step], values: dict[str, Any]) -> None:
    """Run the steps in order, on `values` by node name; afterwards it holds what the outputs need."""
    for step in steps:
        try:
            args = _resolve(step.args, values)
            if step.operands is not None:
                args = tuple(_as_operand(x, step.operands) for x in args)
            result = step.run(*args, **_resolve(step.kwargs, values))
            values[step.name] = _cast(result, step.dtypes)
        except TraceError:
            raise
        except NotImplementedError as error:  # a lowering says itself what it does not take
            raise LoweringError(f"{step.operator} {step.where}: {error}") from error
        except Exception as error:  # whatever JAX raises
            shapes = ", ".join(
                str(logical(x).shape) for x in _resolve(step.args, values) if hasattr(logical(x), "shape")
            )
            raise LoweringError(
                f"{step.operator} {step.where} fails in JAX on arrays of shapes {shapes or 'none'}: "
                f"{type(error).__name__}: {error}"
            ) from error
        for name in step.last_uses:
            values.pop(name, None)


def computing(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that have a value, in order."""
    return [node for node in graph.nodes if node.op == "call_function" and node.target not in _CHECKS]


def fixed_nodes(graph: fx.Graph, covered: Collection[str]) -> set[str]:
    """The nodes that no placeholder named in `covered` is behind."""
    reached = set(covered)
    for node in graph.nodes:
        if any(source.name in reached for source in node.all_input_nodes):
            reached.add(node.name)
    return {node.name for node in graph.nodes} - reached


def has_lowering(node: fx.Node) -> bool:
    """Whether the interpreter can run a node."""
    try:
        _function(node)
    except MissingLoweringError:
        return False
    return True


def where(node: fx.Node) -> str:
    """The module path and the line of the user's code that a node stems from."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next((path for path, _ in reversed(list(stack.values())) if path), "")
    lines = (node.meta.get("stack_trace") or "").strip().splitlines()
    code = [i for i, line in enumerate(lines) if line.strip().startswith("File ") and "/torch/" not in line]
    text = " ".join(line.strip() for line in lines[code[-1] : code[-1] + 2]) if code else ""
    return f"in module {f'model.{path}' if path else 'model'!r}" + (f", {text}" if text else "")


def _function(node: fx.Node) -> Callable[..., Any]:
    target: Any = node.target
    if target in LOWERINGS:
        return LOWERINGS[target]
    if target is operator.getitem:
        return _getitem
    if target is aten.sym_size.int:
        return _sym_size
    if target is aten.sym_numel.default:
        return _sym_numel
    if callable(target) and getattr(target, "__module__", "") in ("_operator", "math", "builtins", "torch"):
        return target  # arithmetic on sizes, which are plain numbers here
    if target is aten._local_scalar_dense.default or target is aten.item.default:
        raise TraceError(
            f"The model reads a number out of a tensor, by item(), float(), int() or tolist() ({where(node)}), which "
            "no fixed program can follow. Keep it a tensor: x * self.scale instead of x * self.scale.item()."
        )
    # an operator taken apart by torch goes by the name of its parts, which the user never wrote
    whole = node.meta.get("original_aten", target) if str(target).startswith("prims.") else target
    part = "" if whole is target else f" (torch takes it apart into {target} and others)"
    raise MissingLoweringError(
        f"No JAX lowering for {whole}{part} ({where(node)}). Register one:\n\n"
        f"    @bridge.lowers({_spelled(whole)})\n"
        f"    def {str(whole).split('.')[1] if '.' in str(whole) else whole}(x, ...):\n"
        "        return jnp...  # the same in JAX: tensors come as arrays\n"
    )


def _fixed_function(node: fx.Node) -> Callable[..., Any]:
    lowering = _function(node)
    if not isinstance(lowering, Lowering) or lowering.fixed is None:
        return lowering
    return dataclasses.replace(lowering, function=lowering.fixed)


def _spelled(target: Any) -> str:
    return f"torch.ops.{target}" if isinstance(target, torch._ops.OpOverload) else str(target)


def _getitem(values: Any, index: int) -> Any:
    return values[index]


def _sym_numel(x: Any) -> int:
    return logical(x).size


def _sym_size(x: Any, dim: int) -> int:
    if isinstance(x, ChannelsLast):
        ndim = x.array.ndim
        return x.array.shape[{0: 0, 1: ndim - 1}.get(dim % ndim, dim % ndim - 1)]
    return x.shape[dim]


def _resolve(argument: Any, values: dict[str, Any]) -> Any:
    if isinstance(argument, fx.Node):
        return values[argument.name]
    if isinstance(argument, (list, tuple)):
        return (
            [_resolve(item, values) for item in argument]
            if isinstance(argument, list)
            else tuple(_resolve(item, values) for item in argument)
        )
    if isinstance(argument, dict):
        return {key: _resolve(value, values) for key, value in argument.items()}
    if isinstance(argument, torch.dtype):
        return jax_dtype(argument)
    return argument


def tensors(node: fx.Node) -> list[torch.Tensor]:
    """What a node stands for, as export saw it: a tensor, several, or none."""
    value = node.meta.get("val")
    values = value if isinstance(value, (list, tuple)) else [value]
    return [item for item in values if isinstance(item, torch.Tensor)]


def _dtypes(node: fx.Node) -> Any:
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        return value.dtype
    if isinstance(value, (list, tuple)):
        return [item.dtype if isinstance(item, torch.Tensor) else None for item in value]
    return None


def _operand_dtype(node: fx.Node) -> torch.dtype | None:
    """Torch brings both operands to one dtype before it computes; JAX rounds afterwards, or not at all."""
    name = str(getattr(node.target, "overloadpacket", ""))
    if name not in _ARITHMETIC | _COMPARISONS or len(node.args) < 2:
        return None
    given = [item.meta.get("val") if isinstance(item, fx.Node) else item for item in node.args[:2]]
    if not any(isinstance(value, torch.Tensor) for value in given):
        return None
    first, second = (value if isinstance(value, (torch.Tensor, bool, int, float)) else 1 for value in given)
    wanted = torch.result_type(first, second)  # pyright: ignore[reportArgumentType, reportCallIssue]
    if name in _ARITHMETIC:
        out = node.meta.get("val")
        if not isinstance(out, torch.Tensor) or not out.is_floating_point():
            return None
        wanted = out.dtype
    return None if all(value.dtype is wanted for value in given if isinstance(value, torch.Tensor)) else wanted


def _as_operand(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, ChannelsLast):
        return value.astype(jax_dtype(dtype))
    return value.astype(jax_dtype(dtype)) if hasattr(value, "dtype") else value


def _cast(result: Any, dtypes: Any) -> Any:
    """Give results torch's dtype: its promotion rules are not JAX's, and the graph knows their outcome."""
    if isinstance(dtypes, list):
        return [_cast(item, dtype) for item, dtype in zip(result, dtypes, strict=True)]
    if dtypes is None:
        return result
    wanted = jax_dtype(dtypes)
    if isinstance(result, ChannelsLast):
        return result.astype(wanted)
    return result if getattr(result, "dtype", None) == wanted else jnp.asarray(result, wanted)
