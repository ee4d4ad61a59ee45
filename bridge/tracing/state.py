"""Run a model and leave it as it was: whatever its forward writes to is put back."""

from __future__ import annotations

import collections
import contextlib
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils import _pytree as torch_pytree

from bridge.tracing.modes import evaluating

T = TypeVar("T")
_CONTAINERS = (list, dict, set, collections.deque)


class Snapshot:
    """Parameters, buffers, attributes and the containers that they hold, as they are when it is made."""

    def __init__(self, model: torch.nn.Module, *, parameters: bool = True) -> None:
        self._tensors: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._undo: list[Callable[[], Any]] = []
        self._seen: set[int] = set() if parameters else {id(p) for p in model.parameters()}
        for module in model.modules():
            self._keep_attributes(module)
        for tensor in [*model.parameters(), *model.buffers()]:
            self._keep_tensor(tensor)

    def restore(self) -> None:
        """Put everything back that differs."""
        for undo in self._undo:
            undo()
        for tensor, value in self._tensors:
            if tensor.shape != value.shape or tensor.dtype != value.dtype:
                tensor.data = value.clone()
            elif not same(tensor, value):
                tensor.data.copy_(value)  # by `data`, or a graph that holds the tensor would notice

    def around(self, run: Callable[[], T]) -> T:
        """What `run` gives, with everything put back afterwards."""
        try:
            return run()
        finally:
            self.restore()

    def _keep_tensor(self, tensor: torch.Tensor) -> None:
        if id(tensor) not in self._seen and not tensor.is_meta and tensor.layout is torch.strided:
            self._seen.add(id(tensor))
            self._tensors.append((tensor, tensor.detach().clone()))

    def _keep_attributes(self, owner: Any) -> None:
        found = dict(vars(owner))
        self._undo.append(lambda: _refill(vars(owner), found))
        for value in found.values():
            self._keep(value)

    def _keep(self, value: Any) -> None:
        """What an attribute holds: containers, tensors in them, and objects of the model's own classes."""
        if isinstance(value, torch.Tensor):
            self._keep_tensor(value)
        elif id(value) in self._seen or isinstance(value, (torch.nn.Module, type)):
            return
        elif isinstance(value, _CONTAINERS):
            self._seen.add(id(value))
            self._keep_container(value)
        elif isinstance(value, tuple):
            for item in value:
                self._keep(item)
        elif isinstance(value, np.ndarray):
            self._seen.add(id(value))
            copy = value.copy()
            self._undo.append(lambda: value.flags.writeable and np.copyto(value, copy))
        elif hasattr(value, "__dict__") and _is_plain(type(value)):
            self._seen.add(id(value))
            self._keep_attributes(value)

    def _keep_container(self, value: Any) -> None:
        if isinstance(value, dict):
            items = dict(value)
            self._undo.append(lambda: _refill(value, items))
            inside = list(items.values())
        else:
            inside = list(value)
            self._undo.append(lambda: _refill_sequence(value, inside))
        for item in inside:
            self._keep(item)


@contextlib.contextmanager
def looking_at(model: torch.nn.Module) -> Iterator[None]:
    """In eval mode meanwhile; whatever a forward writes beside parameters, which none may, is put back in the end."""
    with evaluating(model):
        snapshot = Snapshot(model, parameters=False)
        try:
            yield
        finally:
            snapshot.restore()


@contextlib.contextmanager
def unchanged(model: torch.nn.Module) -> Iterator[Snapshot]:
    """Leave `model` and the random states in the end as they were in the beginning."""
    snapshot = Snapshot(model)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield snapshot
    finally:
        snapshot.restore()
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


def cloned(inputs: Any) -> Any:
    """The inputs on memory of their own, which a forward may write to."""
    return torch_pytree.tree_map(lambda x: x.detach().clone() if isinstance(x, torch.Tensor) else x, inputs)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors of one shape hold the same values, NaN for NaN."""
    if torch.equal(a.detach(), b):
        return True
    return a.is_floating_point() and bool(((a == b) | (a.isnan() & b.isnan())).all())


def _is_plain(kind: type) -> bool:
    """Whether a class is the model's own or its library's, not the machinery of Python or torch."""
    top = kind.__module__.split(".")[0]
    return top not in sys.stdlib_module_names and top not in ("torch", "numpy", "jax", "jaxlib")


def _refill(current: dict[Any, Any], wanted: dict[Any, Any]) -> None:
    if len(current) == len(wanted) and all(current.get(key, current) is value for key, value in wanted.items()):
        return
    current.clear()
    current.update(wanted)


def _refill_sequence(current: Any, wanted: list[Any]) -> None:
    if len(current) == len(wanted) and all(a is b for a, b in zip(current, wanted, strict=True)):
        return
    current.clear()
    (current.update if isinstance(current, set) else current.extend)(wanted)
