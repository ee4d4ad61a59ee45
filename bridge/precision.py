"""16-bit models are worked on in float32: their curvature in 16 bits is no positive matrix any more."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils import _pytree as torch_pytree

_SHORT = (torch.float16, torch.bfloat16)
T = TypeVar("T")


def in_float32(value: T) -> T:
    """A module, or a tree of tensors, with every 16-bit float widened; itself where there is none.

    Raises:
        ValueError: If a module with 16-bit weights cannot be copied.
    """
    if not isinstance(value, nn.Module):
        return torch_pytree.tree_map(_widened, value)
    if not any(is_short(tensor) for tensor in (*value.parameters(), *value.buffers())):
        return value
    try:
        wide = copy.deepcopy(value)
    except Exception as error:
        raise ValueError(
            f"The model has 16-bit weights and cannot be copied into float32 ({error}). Convert it with model.float()."
        ) from error
    for module in wide.modules():
        for name, parameter in module.named_parameters(recurse=False):
            parameter.data = _widened(parameter.data)
            assert name  # the parameter object stays, so that tied ones stay tied
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, _widened(buffer))
    return wide


def in_type_of(given: Any, result: T) -> T:
    """What was computed for inputs widened by :func:`in_float32`, in the 16-bit type of the first of them."""
    first = next((x for x in torch_pytree.tree_leaves(given) if isinstance(x, torch.Tensor)), None)
    if first is None or not is_short(first):
        return result
    return torch_pytree.tree_map(lambda leaf: leaf.to(first.dtype), result)


def is_short(leaf: Any) -> bool:
    """Whether something is a tensor of 16-bit floats."""
    return isinstance(leaf, torch.Tensor) and leaf.dtype in _SHORT


def _widened(leaf: T) -> T:
    return leaf.float() if is_short(leaf) else leaf  # pyright: ignore
