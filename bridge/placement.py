"""Where a model lies: its inputs go there, and programs are made for there."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import jax
import torch

from jax_core.xla.backend import platform
from jax_core.xla.precision import full_precision


def device_of(model: torch.nn.Module) -> torch.device:
    """The device of a model's first parameter or buffer; the CPU for a model that has none."""
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def on_device(model: torch.nn.Module, inputs: Any) -> Any:
    """Inputs where the model is, as tensors that autograd takes: those made under inference_mode are copied."""
    device = device_of(model)

    def moved(leaf: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(False):
            there = leaf.to(device)
            return there.clone() if there.is_inference() else there

    return jax.tree.map(moved, inputs)


def place_of(tree: Any) -> Any:
    """A device that holds the first of a pytree's arrays; ``None`` where there is none."""
    first = next(iter(jax.tree.leaves(tree)), None)
    return None if first is None else next(iter(first.devices()))


@contextlib.contextmanager
def compiling_for(device: Any) -> Iterator[None]:
    """Make programs for a device whose backend is not the default one; for ``None``, as always.

    Lowerings and sizes chosen for a GPU are slow on the CPU: seconds for each batch of digits.
    """
    with contextlib.nullcontext() if device is None or device.platform == platform() else jax.default_device(device):
        yield


def lowered_for_device_of(function: Callable[..., Any], tensors: Any) -> Callable[..., Any]:
    """A traced function in full precision, always lowered for the backend that holds its tensors."""
    full, device = full_precision(function), place_of(tensors)

    @wraps(function)
    def call(*args: Any) -> Any:
        with compiling_for(device):
            return full(*args)

    return call
