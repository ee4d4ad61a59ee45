"""Where a model lies: its inputs go there, and programs are made for there."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any

import jax
import torch

from jax_core.backend import platform
from jax_core.precision import full_precision


def device_of(model: torch.nn.Module) -> torch.device:
    """The device of a model's first parameter or buffer; the CPU for a model that has none."""
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def moved(tree: Any, device: torch.device) -> Any:
    """A pytree of tensors on a device."""
    return jax.tree.map(lambda leaf: leaf.to(device), tree)


@contextlib.contextmanager
def made_for(arrays: Iterable[jax.Array]) -> Iterator[None]:
    """Make programs for the backend that holds the arrays, where that is not the default one.

    Of a model on the CPU, on a machine whose default backend is a GPU, a program made for the GPU takes fifty times as
    long as one made for the CPU.
    """
    first = next(iter(arrays), None)
    device = None if first is None else next(iter(first.devices()))
    with contextlib.nullcontext() if device is None or device.platform == platform() else jax.default_device(device):
        yield


def suited(function: Callable[..., Any], arrays: Iterable[jax.Array]) -> Callable[..., Any]:
    """A traced function in full precision, always lowered for the backend that holds its tensors."""
    held = list(arrays)[:1]

    @wraps(function)
    def call(*args: Any) -> Any:
        with made_for(held):
            return full_precision(function)(*args)

    return call
