"""What cannot be traced, said before any work is done; wrappers that can be looked through."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import torch
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as torch_pytree

from bridge.placement import device_of
from bridge.tracing.errors import TraceError
from bridge.tracing.hooks import check_hooks
from bridge.tracing.inputs import Inputs


def unwrap(model: torch.nn.Module) -> torch.nn.Module:
    """The module inside `torch.compile`, `DataParallel` or `DistributedDataParallel`; names follow the inner one."""
    wrappers = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(model, wrappers):
            model = model.module
        elif type(model).__name__ == "OptimizedModule":  # torch.compile's; importing the class would cost a second
            model = model.get_submodule("_orig_mod")
        else:
            return model


def check(model: Any, inputs: Any) -> None:
    """Raise `TraceError` or `TypeError` with the cause and the remedy where `model` cannot be traced."""
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"trace takes a torch.nn.Module, got {type(model).__name__}. Wrap a function in a module.")
    if not isinstance(inputs, (tuple, dict)) and not hasattr(inputs, "keys"):
        raise TypeError(
            f"example_inputs must be a tensor, a tuple of inputs or a mapping of keyword inputs, got "
            f"{type(inputs).__name__}."
        )
    _check_kinds(model)
    check_hooks(model)
    _check_finite(model)
    _check_double(model, inputs)
    _check_devices(model, inputs)


def _check_kinds(model: torch.nn.Module) -> None:
    for name, module in model.named_modules():
        where = f"model.{name}" if name else "model"
        if isinstance(module, torch.jit.ScriptModule):
            raise TraceError(f"{where} is a scripted module, whose code is compiled away. Trace the original module.")
        if ".quantized" in type(module).__module__:
            raise TraceError(f"{where} is quantised ({type(module).__name__}). Trace the model before quantising it.")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise TraceError(f"{name} of a lazy module has no shape yet. Run the model once on a batch first.")
        if tensor.is_quantized or tensor.layout is not torch.strided or tensor.is_meta:
            raise TraceError(f"{name} is quantised, sparse or on the meta device. Give the model dense weights.")
        if tensor.is_inference():
            raise TraceError(
                f"{name} was made under torch.inference_mode, and autograd cannot take it. Make, copy or unpickle the "
                "model outside of it; fitting and predicting are free to run inside."
            )


def _check_finite(model: torch.nn.Module) -> None:
    bad = [name for name, p in model.named_parameters() if p.is_floating_point() and not p.isfinite().all()]
    if bad:
        shown = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        raise TraceError(f"NaN or infinity in the weights of {shown}. Training has diverged: load sound weights.")


def _check_double(model: torch.nn.Module, inputs: Inputs) -> None:
    given = [x for x in torch_pytree.tree_leaves(inputs) if isinstance(x, torch.Tensor)]
    if _x64():
        return
    wide = any(p.dtype is torch.float64 for p in model.parameters())
    if any(x.dtype is torch.float64 for x in given) and not wide:
        raise TraceError(
            "The inputs are float64, as arrays of NumPy are by default, and the model's weights are not. Convert the "
            "inputs with x.float(), in the data set or by to_batch=, or the model with model.double()."
        )
    if wide:
        raise TraceError(
            "The model or its inputs are float64, but JAX's 64-bit types are off. Enable them at the start of the "
            "program, with jax.config.update('jax_enable_x64', True), or convert with model.float()."
        )


def _check_devices(model: torch.nn.Module, inputs: Inputs) -> None:
    found = {x.device for x in torch_pytree.tree_leaves(inputs) if isinstance(x, torch.Tensor) and x.ndim}
    wanted = device_of(model)
    if found - {wanted} and any(True for _ in model.parameters()):
        given = ", ".join(sorted(map(str, found)))
        raise TraceError(f"The model is on {wanted}, the example inputs are on {given}. Call x.to({str(wanted)!r}).")


def _x64() -> bool:
    return jax.dtypes.canonicalize_dtype(np.float64) == np.float64
