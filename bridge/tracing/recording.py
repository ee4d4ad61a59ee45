"""Run a model's forward in torch and write down what it does: operators, their order, and what no graph shows."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils import _pytree as torch_pytree
from torch.utils._python_dispatch import TorchDispatchMode

from bridge.tracing.hooks import may_change
from bridge.tracing.outputs import plain
from bridge.tracing.source import module_names, running_line, running_module, shown
from bridge.tracing.ties import orders_equals

aten = torch.ops.aten

# copies, and views by another name, which depend on how memory lies and not on what the model does
_SAME = {aten.clone.default, aten.alias.default, aten.detach.default, aten.lift_fresh.default, aten.expand.default}
_SPELLED = {aten._unsafe_view.default: aten.view.default, aten.reshape.default: aten.view.default}


@dataclasses.dataclass(frozen=True)
class Call:
    """One operator: its numbers, which may grow with the batch, and where its tensors come from."""

    operator: Any
    fixed: tuple[Any, ...]
    sizes: tuple[int, ...]
    sources: tuple[Any, ...]
    line: tuple[str, int] | None

    def follows(self, other: Call, factor: int) -> bool:
        """Whether it is the same step as `other`, on a batch `factor` times as long."""
        return (self.operator, self.fixed, self.sources, len(self.sizes)) == (
            other.operator,
            other.fixed,
            other.sources,
            len(other.sizes),
        ) and all(a in (b, factor * b) for a, b in zip(self.sizes, other.sizes, strict=True))


@dataclasses.dataclass(frozen=True)
class Seen:
    """Something that a forward did which its graph does not tell."""

    what: str
    where: str


@dataclasses.dataclass(frozen=True)
class Recording:
    """One run of a forward."""

    calls: tuple[Call, ...]
    outputs: list[torch.Tensor]
    values: list[Any]
    """What each call gave."""
    random: tuple[Seen, ...]
    written: tuple[Seen, ...]
    """Writes into parameters."""
    own_backward: tuple[Seen, ...]
    derivatives: tuple[Seen, ...]
    complex: tuple[Seen, ...]
    """The first complex number."""
    dtypes: frozenset[torch.dtype]
    ties: tuple[Call, ...] = ()
    """The calls that ordered equal elements."""

    def same_path(self, other: Recording, factor: int) -> bool:
        """Whether `other`, on a batch shorter by `factor`, did the same."""
        return len(self.calls) == len(other.calls) and all(
            a.follows(b, factor) for a, b in zip(self.calls, other.calls, strict=True)
        )


def record(model: torch.nn.Module, inputs: Any) -> Recording:
    """Run `model` once on `inputs`, which it may write to."""
    recorder = _Recorder(model, inputs)
    with _watching(recorder), recorder:
        outputs = model(*inputs) if isinstance(inputs, tuple) else model(**inputs)
    leaves = [x.detach() for x in torch_pytree.tree_leaves(plain(outputs)) if isinstance(x, torch.Tensor)]
    seen = {kind: tuple(found) for kind, found in recorder.seen.items()}
    dtypes, ties = frozenset(recorder.dtypes), tuple(recorder.ties)
    return Recording(tuple(recorder.calls), leaves, recorder.values, dtypes=dtypes, ties=ties, **seen)


class _Recorder(TorchDispatchMode):
    def __init__(self, model: torch.nn.Module, inputs: Any) -> None:
        super().__init__()
        self.names = module_names(model)
        self.calls: list[Call] = []
        self.values: list[Any] = []
        self.ties: list[Call] = []
        self.dtypes: set[torch.dtype] = set()
        self.seen: dict[str, list[Seen]] = {"random": [], "written": [], "own_backward": [], "derivatives": []}
        self.seen["complex"] = []
        self._alive: list[Any] = []  # no memory is used twice
        self._parameters = {_memory(p): name for name, p in model.named_parameters()}
        state = [*model.named_parameters(), *model.named_buffers()]
        self._sources: dict[int, Any] = {_memory(tensor): name for name, tensor in state}
        for i, leaf in enumerate(torch_pytree.tree_leaves(inputs)):
            if isinstance(leaf, torch.Tensor):
                self._sources.setdefault(_memory(leaf), i)

    def note(self, kind: str, what: str) -> None:
        """Write down something seen in the line that is running."""
        module = running_module(self.names)
        self.seen[kind].append(Seen(what, f"in module {module!r}{shown(running_line())}"))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if torch.Tag.nondeterministic_seeded in func.tags and not _is_idle(func, args, kwargs):
            self.note("random", str(func))
        if func._schema.is_mutable:
            self._note_write(func, args)
        self._keep(func, args, kwargs, result)
        return result

    def _note_write(self, func: Any, args: Any) -> None:
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info and argument.alias_info.is_write and isinstance(value, torch.Tensor):
                name = self._parameters.get(_memory(value))
                if name is not None and not _is_statistic(func):
                    self.note("written", name)

    def _keep(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        tensors: list[torch.Tensor] = []
        fixed: list[Any] = []
        sizes: list[int] = []
        for leaf in torch_pytree.tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Tensor):
                tensors.append(leaf)
            elif isinstance(leaf, int) and not isinstance(leaf, bool):
                sizes.append(leaf)
            elif isinstance(leaf, torch.ScriptObject):  # which cannot be compared, as a profiler's marks
                fixed.append(type(leaf).__name__)
            elif not isinstance(leaf, torch.memory_format):
                fixed.append(leaf)
        if func in _SAME and tensors:
            self._sources.setdefault(_memory(result), self._source(tensors[0]))
            self._alive.append(result)
        else:
            sources = tuple(self._source(tensor) for tensor in tensors)
            number = len(self.calls)
            operator = _SPELLED.get(func, func)
            self.calls.append(Call(operator, tuple(fixed), tuple(sizes), sources, running_line()))
            self.values.append(result)
            if orders_equals(func, args, kwargs):
                self.ties.append(self.calls[-1])
            for i, leaf in enumerate(torch_pytree.tree_leaves(result)):
                if isinstance(leaf, torch.Tensor):
                    self.dtypes.add(leaf.dtype)
                    if leaf.is_complex() and not self.seen["complex"]:
                        self.note("complex", str(func))
                    self._sources.setdefault(_memory(leaf), (number, i))

    def _source(self, tensor: torch.Tensor) -> Any:
        # a constant outside the modules goes by its values' place in memory, the same in every run
        return self._sources.get(_memory(tensor), ("constant", tensor.data_ptr()))


def _memory(tensor: torch.Tensor) -> int:
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse and the like
        return id(tensor)


def _is_idle(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether an operator that can draw random numbers has a rate of zero."""
    given = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
    if "dropout" in str(func) or "attention" in str(func):
        return not given.get("dropout_p", given.get("p", given.get("dropout", 0.0))) or given.get("train") is False
    return "rrelu" in str(func) and not given.get("training", False)


def _is_statistic(func: Any) -> bool:
    return "batch_norm" in str(func)


@contextlib.contextmanager
def _watching(recorder: _Recorder) -> Iterator[None]:
    """Note what leaves no trace in a graph: backwards of one's own, hooks on tensors, derivatives inside forward."""
    function, tensor, autograd = torch.autograd.Function, torch.Tensor, torch.autograd
    apply, hook, grad, backward = function.__dict__["apply"], tensor.register_hook, autograd.grad, tensor.backward
    engine = autograd._engine_run_backward

    def noting_apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if cls.__module__.split(".")[0] != "torch":
            recorder.note("own_backward", f"{cls.__name__}.apply, a torch.autograd.Function with a backward of its own")
        return apply.__get__(None, cls)(*args, **kwargs)

    def noting_hook(self: torch.Tensor, given: Callable[..., Any]) -> Any:
        if may_change(given):
            recorder.note("own_backward", f"register_hook({_name(given)}), which may change gradients")
        return hook(self, given)

    def noting_grad(*args: Any, **kwargs: Any) -> Any:
        recorder.note("derivatives", "torch.autograd.grad")
        return grad(*args, **kwargs)

    def noting_backward(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        recorder.note("derivatives", "backward()")
        return backward(self, *args, **kwargs)

    def noting_engine(*args: Any, **kwargs: Any) -> Any:  # of functions that were imported by name
        recorder.note("derivatives", "torch.autograd.grad or backward()")
        return engine(*args, **kwargs)

    try:
        setattr(autograd, "_engine_run_backward", noting_engine)  # noqa: B010
        setattr(function, "apply", classmethod(noting_apply))  # noqa: B010  (no assignment that a checker accepts)
        setattr(tensor, "register_hook", noting_hook)  # noqa: B010
        setattr(autograd, "grad", noting_grad)  # noqa: B010
        setattr(tensor, "backward", noting_backward)  # noqa: B010
        yield
    finally:
        setattr(autograd, "_engine_run_backward", engine)  # noqa: B010
        setattr(function, "apply", apply)  # noqa: B010
        setattr(tensor, "register_hook", hook)  # noqa: B010
        setattr(autograd, "grad", grad)  # noqa: B010
        setattr(tensor, "backward", backward)  # noqa: B010


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", type(function).__name__)
