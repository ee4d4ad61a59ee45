"""JAX's 64-bit types for models that have them, and for nothing else: no global configuration is touched."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
import torch
from torch import nn

_SPOKEN = ("__matmul__", "__iter__")  # private by their names alone


def is_wide(model: nn.Module) -> bool:
    """Whether a model has weights in float64."""
    return any(parameter.dtype is torch.float64 for parameter in model.parameters())


def wide_types(wanted: bool) -> contextlib.AbstractContextManager[Any]:
    """JAX's 64-bit types within a block, where they are wanted; otherwise whatever holds outside."""
    return jax.enable_x64(True) if wanted and not jax.config.read("jax_enable_x64") else contextlib.nullcontext()


class InOwnTypes:
    """Subclasses whose public methods and properties run with 64-bit types where ``self.runs_wide()`` says so."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Wrap what the class itself defines."""
        super().__init_subclass__(**kwargs)
        for name, member in list(vars(cls).items()):
            if name == "runs_wide" or (name.startswith("_") and name not in _SPOKEN):
                continue
            if inspect.isfunction(member):
                setattr(cls, name, _wrapped(member))
            elif isinstance(member, property):
                parts = [part and _wrapped(part) for part in (member.fget, member.fset, member.fdel)]
                setattr(cls, name, property(*parts, doc=member.__doc__))

    def runs_wide(self) -> bool:
        """Whether 64-bit types are wanted."""
        raise NotImplementedError


def _wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def call(self: InOwnTypes, *args: Any, **kwargs: Any) -> Any:
        with wide_types(self.runs_wide()):
            return function(self, *args, **kwargs)

    return call
