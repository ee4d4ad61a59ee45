"""What cannot be traced, said before any work is done."""

from __future__ import annotations

import jax
import numpy as np
import torch
from torch.utils import _pytree as torch_pytree

from bridge.tracing.errors import TraceError
from bridge.tracing.inputs import Inputs


def check(model: torch.nn.Module, inputs: Inputs) -> None:
    """Raise `TraceError` with the cause and the remedy where `model` or `inputs` cannot be traced."""
    _check_finite(model)
    _check_double(model, inputs)


def _check_finite(model: torch.nn.Module) -> None:
    bad = [name for name, p in model.named_parameters() if p.is_floating_point() and not p.isfinite().all()]
    if bad:
        shown = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        raise TraceError(f"NaN or infinity in the weights of {shown}. Training has diverged: load sound weights.")


def _check_double(model: torch.nn.Module, inputs: Inputs) -> None:
    tensors = [*model.parameters(), *(x for x in torch_pytree.tree_leaves(inputs) if isinstance(x, torch.Tensor))]
    if any(x.dtype is torch.float64 for x in tensors) and not _x64():
        raise TraceError(
            "The model or its inputs are float64, but JAX's 64-bit types are off. Enable them at the start of the "
            "program, with jax.config.update('jax_enable_x64', True), or convert with model.float()."
        )


def _x64() -> bool:
    return jax.dtypes.canonicalize_dtype(np.float64) == np.float64
