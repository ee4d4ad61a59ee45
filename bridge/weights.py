"""The weights of a fitted model: whether they are still those that its posterior belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from bridge.tensors import to_torch
from bridge.tracing.checks import unwrap

_SAMPLED = 1024  # numbers of a tensor that are looked at on every call


class WeightWatch:
    """Notices cheaply that a model's parameters or buffers are no longer what they were.

    Torch counts writes in place (``tensor._version``), and another tensor lies elsewhere; writes through ``.data`` are
    not counted, so some numbers of each tensor are compared too.
    """

    def __init__(self, model: nn.Module) -> None:
        """Remember the state of a model."""
        self._seen = {name: _mark(tensor) for name, tensor in state(model)}
        self._sampled = {name: _some(tensor).clone() for name, tensor in state(model)}

    def moved(self, model: nn.Module, reference: Mapping[str, Any]) -> list[str]:
        """Names of tensors that differ from a reference.

        Args:
            model: The model that was remembered.
            reference: The arrays of the posterior's model by name; other tensors are not looked at.
        """
        found = []
        for name, tensor in state(model):
            if name not in reference or self._is_as_seen(name, tensor):
                continue
            if _equal(tensor, reference[name]):  # moved to another device and back, or written with its own values
                self._seen[name], self._sampled[name] = _mark(tensor), _some(tensor).clone()
            else:
                found.append(name)
        return found

    def _is_as_seen(self, name: str, tensor: torch.Tensor) -> bool:
        return self._seen.get(name) == _mark(tensor) and torch.equal(_some(tensor), self._sampled[name])


def state(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers of the model inside any wrapper, tied ones once."""
    inner = unwrap(model)
    yield from ((name, p.detach()) for name, p in inner.named_parameters())
    yield from ((name, b.detach()) for name, b in inner.named_buffers())


def digest(model: nn.Module) -> str:
    """A hash over names, shapes and values of a model's parameters and buffers, whatever wraps it."""
    found = hashlib.sha256()
    for name, tensor in sorted(state(model), key=lambda item: item[0]):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _mark(tensor: torch.Tensor) -> tuple[Any, ...]:
    version = 0 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), version, tensor.dtype, tuple(tensor.shape), tensor.device


def _some(tensor: torch.Tensor) -> torch.Tensor:
    # in the order of memory, in which channels-last weights are no copy either
    stride = tensor.stride()
    flat = tensor.permute(sorted(range(tensor.ndim), key=lambda axis: -stride[axis])).reshape(-1)
    return flat[:: max(1, flat.numel() // _SAMPLED)]


def _equal(tensor: torch.Tensor, array: Any) -> bool:
    if tuple(tensor.shape) != tuple(array.shape):
        return False
    ours, theirs = to_torch(array).cpu(), tensor.cpu()
    if ours.is_floating_point() != theirs.is_floating_point():
        return False
    # the reference of a 16-bit model is in float32; weights made coarser are other weights
    wide = torch.promote_types(ours.dtype, theirs.dtype)
    return bool(np.array_equal(ours.to(wide).numpy(), theirs.to(wide).numpy(), equal_nan=ours.is_floating_point()))
