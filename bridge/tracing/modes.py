"""Look at a model without changing it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put every submodule in eval mode, with gradients on, and restore each one's own mode in the end."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.inference_mode(False), torch.enable_grad():
            for module, _ in modes:
                module.training = False  # not .eval(), which a module may have overridden
            yield
    finally:
        for module, mode in modes:
            module.training = mode
