"""Hooks that may change gradients, which torch runs in its backward pass and no graph holds."""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.modules import module as torch_module

from bridge.tracing.errors import TraceError


def may_change(hook: Callable[..., Any]) -> bool:
    """Whether a hook may return a gradient: no, if all that it returns is None (one that logs or keeps gradients)."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    if not isinstance(hook, (types.FunctionType, types.MethodType)):
        hook = type(hook).__call__
    code = getattr(hook, "__code__", None)
    return code is None or any(value is not None for value in _returned(code))


def _returned(code: types.CodeType) -> Iterator[Any]:
    """What the `return`s of a function give: None where that is what is written, else the instruction before."""
    before: Any = None
    for step in dis.get_instructions(code):
        if step.opname == "RETURN_CONST":
            yield step.argval
        elif step.opname == "RETURN_VALUE":
            yield None if before is not None and before.opname == "LOAD_CONST" and before.argval is None else step
        before = step


def check_hooks(model: torch.nn.Module) -> None:
    """Raise `TraceError` where modules or parameters carry hooks that may change gradients."""
    for name, module in model.named_modules():
        for hook in [*module._backward_hooks.values(), *module._backward_pre_hooks.values()]:
            _refuse(hook, f"Module {f'model.{name}' if name else 'model'!r}")
    for hooks in (torch_module._global_backward_hooks, torch_module._global_backward_pre_hooks):
        for hook in hooks.values():
            _refuse(hook, "torch.nn.Module (every module)")
    for name, parameter in model.named_parameters():
        for hook in (getattr(parameter, "_backward_hooks", None) or {}).values():
            _refuse(hook, f"Parameter {name!r}")


def _refuse(hook: Any, owner: str) -> None:
    if may_change(hook):
        raise TraceError(
            f"{owner} has a backward hook, {getattr(hook, '__qualname__', type(hook).__name__)}, that may change "
            "gradients. A traced function has the derivative of what forward computes, and no hooks: remove the hook "
            "before tracing (handle.remove()), or, if it returns nothing, write it without a return."
        )
