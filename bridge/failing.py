"""Why a forward that the user has run many times fails on the example that it is traced on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as torch_pytree

from bridge.independence import length, runs
from bridge.precision import is_short

_FEW = 2
"""Samples that a model is traced on."""


def reason(model: nn.Module, network: nn.Module, given: Any, inputs: Any) -> str:
    """What differs between the user's own call and ours, and what to do about it; nothing where that is not known.

    Args:
        model: As it was given.
        network: It in 32 bits.
        given: The first batch's inputs as the loader yields them.
        inputs: As the network takes them.
    """
    if isinstance(given, Mapping) and isinstance(inputs, tuple):
        keys = ", ".join(map(repr, inputs[0]))
        return (
            f" The batch is a mapping, and {type(model).__name__}.forward has no parameters named like its keys {keys}"
            ", so that it was handed the mapping as one input. Pick what the model takes with to_batch=, as "
            f"to_batch=lambda batch: (batch[{next(iter(inputs[0]))!r}], batch[...])."
        )
    if length(inputs) > _FEW and runs(network, inputs):
        return (
            f" It takes the {length(inputs)} samples that the loader yields, and is traced on {_FEW} of them: its "
            "code fixes the batch size. Write its sizes in terms of x.shape[0] (or -1)."
        )
    if network is not model and runs(model, torch_pytree.tree_map(_as_before(given), inputs)):
        return (
            " Models with weights in 16 bits are worked on in float32, and this one casts to 16 bits in its forward. "
            "Cast to the weights' own type there, as x.to(self.layer.weight.dtype), or give the model in float32."
        )
    return ""


def _as_before(given: Any) -> Any:
    short = [x.dtype for x in torch_pytree.tree_leaves(given) if is_short(x)]
    return lambda leaf: leaf.to(short[0]) if short and leaf.dtype is torch.float32 else leaf
