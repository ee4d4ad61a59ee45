"""Show what a model is made of and where its JAX counterpart begins to differ."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import torch
from torch import fx
from torch.export import ExportedProgram

from bridge.placement import lowered_for_device_of
from bridge.tensors import to_jax
from bridge.tracing.binding import Binding, bind, to_arrays
from bridge.tracing.capture import capture
from bridge.tracing.checks import check, unwrap
from bridge.tracing.comparison import norm, relative_error
from bridge.tracing.errors import MissingLoweringError, TraceError
from bridge.tracing.exported import trace_export
from bridge.tracing.guards import batch_sizes
from bridge.tracing.inputs import Inputs, make_signature
from bridge.tracing.interpreter import compile_steps, has_lowering, run_steps
from bridge.tracing.lowering import logical
from bridge.tracing.modes import evaluating
from bridge.tracing.results import torch_results, traced_results
from bridge.tracing.state import Snapshot, cloned, unchanged

_SHOWN = 1e-4  # errors of gradients above are listed one by one


@dataclasses.dataclass(frozen=True)
class Row:
    """One module: its own operators, those among them without a lowering, and the error of its output."""

    module: str
    kind: str
    operators: Mapping[str, int]
    missing: tuple[str, ...]
    error: float | None
    """Relative to torch's output; None where it could not be compared."""


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The table that `explain` returns; print it."""

    rows: tuple[Row, ...]
    gradients: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """For each parameter, how far its gradient is from torch's; empty where that could not be computed."""

    @property
    def missing(self) -> tuple[str, ...]:
        """Every operator without a lowering."""
        return tuple(sorted({name for row in self.rows for name in row.missing}))

    def __str__(self) -> str:
        lines = [f"{'module':40} {'class':24} {'error':>8}  operators (! = no lowering)"]
        for row in self.rows:
            names = [
                f"{'! ' if n in row.missing else ''}{n}{f' x{k}' if k > 1 else ''}" for n, k in row.operators.items()
            ]
            error = "-" if row.error is None else f"{row.error:.1e}"
            lines.append(f"{row.module[-40:]:40} {row.kind[-24:]:24} {error:>8}  {', '.join(names)}")
        wrong = {name: error for name, error in self.gradients.items() if not error <= _SHOWN}
        lines += [f"gradient of {name} is off by {error:.1e}" for name, error in wrong.items()]
        if self.gradients and not wrong:
            lines.append(f"gradients agree to {max(self.gradients.values()):.1e}")
        return "\n".join(lines)


def explain(model: torch.nn.Module, example_inputs: torch.Tensor | tuple[Any, ...] | Mapping[str, Any]) -> Explanation:
    """List the operators of each module, which have lowerings, and how far each output is from torch's.

    Where `trace` reports a mismatch, the first module in the table with a large error is where it begins. A module
    that is called several times is compared on its last call.
    """
    model = unwrap(model)
    inputs: Inputs = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else example_inputs
    check(model, inputs)
    with evaluating(model), unchanged(model) as snapshot:
        program = snapshot.around(lambda: capture(model, cloned(inputs)))
        wanted = snapshot.around(lambda: _torch_outputs(model, cloned(inputs)))
        got = _jax_outputs(program, bind(program, model), inputs)
        gradients = _gradients(model, inputs, snapshot) if got else {}
    return Explanation(tuple(_rows(program, wanted, got)), gradients)


def _gradients(model: torch.nn.Module, inputs: Inputs, snapshot: Snapshot) -> dict[str, float]:
    """The errors of gradients: a backward of one's own shows in no output."""
    try:
        traced = snapshot.around(lambda: trace_export(model, cloned(inputs)))
        wanted, cotangents = snapshot.around(lambda: torch_results(model, inputs, traced.params))
        got = traced_results(traced, inputs, cotangents)
    except TraceError:
        return {}
    largest = max((norm(g) for g in wanted.gradients.values()), default=0.0)
    return {k: relative_error(got.gradients[k], g, floor=1e-3 * largest) for k, g in wanted.gradients.items()}


def _rows(program: ExportedProgram, wanted: Mapping[str, torch.Tensor], got: Mapping[str, Any]) -> list[Row]:
    counts: dict[tuple[str, str], collections.Counter[str]] = {}
    missing: dict[str, set[str]] = collections.defaultdict(set)
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        stack = _stack(node)
        for path, kind in stack:  # a row for every module, in the order of the calls
            counts.setdefault((path, kind), collections.Counter())
        path, kind = stack[-1] if stack else ("model", "")
        counts.setdefault((path, kind), collections.Counter())[str(node.target)] += 1
        if not has_lowering(node):
            missing[path].add(str(node.target))
    return [
        Row(path, kind, dict(counter), tuple(sorted(missing[path])), _error(got.get(path), wanted.get(path)))
        for (path, kind), counter in counts.items()
    ]


def _stack(node: fx.Node) -> list[tuple[str, str]]:
    """The modules around a node, outermost first, as path and class."""
    modules: dict[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
    stack = [value for key, value in modules.items() if not key.startswith("_empty")]  # export's own nodes
    return [(f"model.{path}" if path else "model", str(kind).rsplit(".", 1)[-1]) for path, kind in stack]


def _torch_outputs(model: torch.nn.Module, inputs: Inputs) -> dict[str, torch.Tensor]:
    outputs: dict[str, torch.Tensor] = {}
    handles = []
    for name, module in model.named_modules():
        path = f"model.{name}" if name else "model"

        def keep(module: torch.nn.Module, args: Any, output: Any, path: str = path) -> None:
            if isinstance(output, torch.Tensor):
                outputs[path] = output.detach().clone()  # a later module may write into it

        handles.append(module.register_forward_hook(keep))
    try:
        with torch.no_grad():
            _ = model(*inputs) if isinstance(inputs, tuple) else model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def _jax_outputs(program: ExportedProgram, binding: Binding, inputs: Inputs) -> dict[str, Any]:
    """The value of the last node of each module."""
    try:
        steps = [dataclasses.replace(step, last_uses=()) for step in compile_steps(program.graph)]
    except MissingLoweringError:
        return {}
    signature = make_signature(inputs, *batch_sizes(program, binding.inputs))
    arrays = signature.flatten(to_jax(inputs if isinstance(inputs, tuple) else (dict(inputs),)))
    tensors = {**to_arrays(binding.buffers), **to_arrays(binding.params)}
    last = {path: node.name for node in program.graph.nodes if node.op == "call_function" for path, _ in _stack(node)}

    def run(tensors: Any, arrays: Any) -> dict[str, Any]:
        values = dict(zip(binding.inputs, arrays, strict=True))
        values.update({placeholder: tensors[name] for placeholder, name in binding.names.items()})
        run_steps(steps, values)
        return {path: logical(values[name]) for path, name in last.items() if hasattr(logical(values[name]), "shape")}

    return jax.jit(lowered_for_device_of(run, tensors))(tensors, arrays)


def _error(got: Any, wanted: torch.Tensor | None) -> float | None:
    if got is None or wanted is None or tuple(got.shape) != tuple(wanted.shape) or not wanted.is_floating_point():
        return None  # nothing to compare
    return relative_error(got, wanted)
