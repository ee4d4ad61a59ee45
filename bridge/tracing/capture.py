"""Export a model: its ATen graph, functionalised, with a dynamic batch axis and every refusal explained."""

from __future__ import annotations

import contextlib
import io
import logging
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import _decomp, fx
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.nn.modules import module as torch_module
from torch.nn.modules import transformer
from torch.utils import _pytree as torch_pytree

from bridge.tracing.errors import TraceError
from bridge.tracing.guards import guard_line
from bridge.tracing.inputs import Inputs, batch_size, is_batched
from bridge.tracing.lowering import LOWERINGS
from bridge.tracing.outputs import plain
from bridge.tracing.source import module_names, raising_line, running_line, shown
from bridge.tracing.writes import check_detached_writes, drop_last_copies, without_writes

aten = torch.ops.aten

UNCOMMON = 23  # samples at least, in the second try at a batch axis


def capture(model: torch.nn.Module, inputs: Inputs, *, dynamic: bool = True) -> ExportedProgram:
    """Export `model`, with its composite operators kept whole where there is a lowering.

    The batch axis (axis 0 of every input tensor as long as the first one) is dynamic. Where the batch of the example
    is as long as some axis inside the model (two samples, two layers), export may take the one for the other and fix
    it: then the example is repeated to a length that nothing else has. Unless `dynamic`, the graph is that of the
    example's batch size alone.
    """
    if not dynamic:
        return _export(model, *((inputs, {}) if isinstance(inputs, tuple) else ((), dict(inputs))), dynamic=False)[0]
    given = (inputs, {}) if isinstance(inputs, tuple) else ((), dict(inputs))
    size = batch_size(given)
    # export would take a batch of one for a constant
    program, culprit = _export(model, *_repeat(given, 2 if size == 1 else 1))
    if size is not None and culprit is not None:
        with contextlib.suppress(TraceError):  # the first try tells more
            second, still = _export(model, *_repeat(given, -(-UNCOMMON // max(size, 1))))
            program, culprit = (second, None) if still is None else (program, culprit)
    if culprit:
        raise TraceError(
            f"The batch size is fixed to {size} by {culprit}. Write its sizes in terms of x.shape[0] (or -1), not of "
            "len(x), which Python makes a plain number (as torch.linspace and torch.vander do: torch.arange does not), "
            "with the batch as axis 0 of the inputs."
        )
    return program


def _export(
    model: torch.nn.Module, args: Any, kwargs: Any, *, dynamic: bool = True
) -> tuple[ExportedProgram, str | None]:
    """The program, and what fixed its batch size: a module and a line, "" if unknown, None if it stayed open."""
    watch = _BatchWatch(model)
    with _quiet(), _without_data_branches(), watch.hooked():
        try:
            shapes = _dynamic(model, args, kwargs) if dynamic else None
            with _detached_data():
                program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
            drop_last_copies(program.graph)
            check_detached_writes(program.graph)
            _restore_stop_gradient(program.graph)
            if not without_writes(program.graph):
                program = program.run_decompositions(_decompositions())
        except Exception as error:  # whatever the model's own code raises on symbolic sizes
            raise TraceError(_explained(error)) from error
    if watch.culprit is not None:
        return program, watch.culprit
    return program, None if _is_open(program) else ""


def _is_open(program: ExportedProgram) -> bool:
    values = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"]
    sizes = [n for value in values if isinstance(value, torch.Tensor) for n in value.shape]
    return any(isinstance(n, torch.SymInt) and n.node.maybe_as_int() is None for n in sizes)


def _repeat(given: tuple[Any, Any], times: int) -> tuple[Any, Any]:
    size = batch_size(given)

    def repeated(x: Any) -> Any:
        return torch.cat([x] * times) if times > 1 and is_batched(x, size) else x

    return torch_pytree.tree_map(repeated, given)


def _dynamic(model: torch.nn.Module, args: Any, kwargs: Any) -> Any:
    size = batch_size((args, kwargs))
    shapes = ShapesCollection()  # places each axis whatever the signature of forward: *args, defaults, mappings
    for leaf in torch_pytree.tree_leaves((args, kwargs)):
        if is_batched(leaf, size):
            shapes[leaf] = {0: Dim.AUTO}
    return shapes.dynamic_shapes(model, args, kwargs)


def _decompositions() -> dict[Any, Any]:
    """Torch's own decompositions, without the operators that have a lowering."""
    rules = {**_decomp.decomposition_table, **torch.export.default_decompositions()}
    return {operator: rule for operator, rule in rules.items() if operator not in LOWERINGS}


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


@contextlib.contextmanager
def _detached_data() -> Iterator[None]:
    """Read `h.data` as `h.detach()`, the same values without a derivative: export sees no operator in the first.

    In this thread alone. By a property, since a mode of torch's would stand in the place of the user's lines.
    """
    ours, base = threading.get_ident(), torch._C.TensorBase.__dict__["data"]

    def read(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach() if threading.get_ident() == ours else base.__get__(tensor)

    def replace(tensor: torch.Tensor, value: torch.Tensor) -> None:
        if threading.get_ident() != ours:
            return base.__set__(tensor, value)
        raise TraceError(
            f"The model assigns to .data of a tensor in its forward{shown(running_line())}\n"
            "Export does not see it. Compute a new tensor instead, as h = h + (f(h) - h).detach()."
        )

    setattr(torch.Tensor, "data", property(read, replace))  # noqa: B010  (no assignment that a checker accepts)
    try:
        yield
    finally:
        del torch.Tensor.data


class _BatchWatch:
    """Hooks, on during an export, that see which module first fixes the batch size, and make outputs plain."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.culprit: str | None = None
        self._names = module_names(model)
        self._size: Any = None

    @contextlib.contextmanager
    def hooked(self) -> Iterator[None]:
        # global hooks, since one on the model itself would change it
        handles = [
            torch_module.register_module_forward_pre_hook(self._before),
            torch_module.register_module_forward_hook(self._after),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, module: torch.nn.Module, args: Any) -> None:
        if self._size is None:
            leaves = [x for x in torch_pytree.tree_leaves(args) if isinstance(x, torch.Tensor) and x.ndim]
            self._size = leaves[0].shape[0] if leaves else None

    def _after(self, module: torch.nn.Module, args: Any, output: Any) -> Any:
        if self.culprit is None and isinstance(self._size, torch.SymInt) and self._size.node.maybe_as_int() is not None:
            self.culprit = f"module {self._names.get(id(module), 'model')!r}{shown(_fixing_line(self._size))}"
        return plain(output) if module is self.model else None


def _fixing_line(size: Any) -> tuple[str, int] | None:
    """The line of the model's code that made the symbol of a size a number."""
    for guard in reversed(getattr(size.node.shape_env, "guards", [])):
        line = guard_line(guard)
        if line is not None and size.node._expr in guard.expr.free_symbols:
            return line
    return None


def _explained(error: Exception) -> str:
    """What export says, with the line of the user's code in front."""
    at = shown(raising_line(error)).replace(", ", "\n  ", 1)
    text = str(error).strip()
    if isinstance(error, TraceError):
        return text
    if "data-dependent" in text or "DataDependent" in type(error).__name__:
        return (
            f"The model's code branches on values of its data, which no fixed program can follow:{at}\n"
            "Write the choice as torch.where(condition, a, b), or leave that part out of the traced model."
        )
    return (
        f"torch.export cannot capture the model: {type(error).__name__}: {text.splitlines()[0] if text else ''}{at}\n"
        "Write that line with torch's own operators on tensors, or leave that part out of the traced model."
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Export logs what `_explained` says, at length, and warns about attributes nobody could act on."""
    loggers = [logging.getLogger(f"torch.{name}") for name in ("fx.experimental.symbolic_shapes", "export", "_export")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        # a branch on data would print the whole graph
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _without_data_branches() -> Iterator[None]:
    """Keep torch's transformer layers from looking into masks, and from their fused inference kernels.

    `nn.TransformerEncoder` compares a given mask with the causal one, only to choose a faster kernel.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    detect = transformer._detect_is_causal_mask
    torch.backends.mha.set_fastpath_enabled(False)
    transformer._detect_is_causal_mask = lambda mask, is_causal=None, size=None: bool(is_causal)
    try:
        yield
    finally:
        transformer._detect_is_causal_mask = detect
        torch.backends.mha.set_fastpath_enabled(fast)
