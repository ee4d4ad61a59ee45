"""Weights on a second device of JAX's and data on the first, as on a machine with a GPU, without one.

JAX shows the CPU as two devices (``--xla_force_host_platform_device_count=2``), and refuses to compute on arrays that
lie on both. Torch knows one CPU: whose storage a module's weights or what came of them are is kept by address here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import jax
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from bridge import at_length, fitting, lengths, tensors


class Elsewhere:
    """Storages that lie on the second device. They are kept, so that no other gets their address."""

    def __init__(self) -> None:
        self.kept: dict[int, Any] = {}

    def add(self, *values: Any) -> None:
        self.kept |= {storage.data_ptr(): storage for storage in _storages(values)}

    def holds(self, *values: Any) -> bool:
        return any(storage.data_ptr() in self.kept for storage in _storages(values))


def _storages(values: Any) -> Iterator[Any]:
    for value in tree_leaves(values):
        if type(value) in (torch.Tensor, nn.Parameter) and not value.is_meta:
            yield value.untyped_storage()


class _Spread(TorchFunctionMode):
    """What torch computes from tensors elsewhere lies there too, until ``.cpu()``."""

    def __init__(self, there: Elsewhere) -> None:
        super().__init__()
        self.there = there

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if self.there.holds(args, kwargs or {}):
            if getattr(func, "__name__", "") == "cpu":
                return found.clone()
            self.there.add(found)
        return found


@contextmanager
def weights_elsewhere(*models: nn.Module) -> Iterator[Elsewhere]:
    """Within it, the models' weights, and what is moved to them, lie on JAX's second device, which is the default."""
    host, second = jax.devices("cpu")
    there = Elsewhere()
    for model in models:
        there.add(*model.parameters(), *model.buffers())
    to_jax, to_torch, on_device = tensors._leaf_to_jax, tensors._leaf_to_torch, fitting.on_device

    def placed(leaf: Any) -> Any:
        found = to_jax(leaf)
        return jax.device_put(found, second if there.holds(leaf) else host) if isinstance(found, jax.Array) else found

    def known(leaf: Any) -> Any:
        found = to_torch(leaf)
        if isinstance(leaf, jax.Array) and second in leaf.devices():
            there.add(found)
        return found

    def moved(model: nn.Module, inputs: Any) -> Any:
        found = on_device(model, inputs)
        if there.holds(*model.parameters()):
            found = jax.tree.map(torch.clone, found)
            there.add(found)
        return found

    with (
        jax.default_device(second),
        patch.object(tensors, "_leaf_to_jax", placed),
        patch.object(tensors, "_leaf_to_torch", known),
        patch.object(fitting, "on_device", moved),
        patch.object(at_length, "on_device", moved),
        patch.object(lengths, "on_device", moved),
        _Spread(there),
    ):
        yield there
