"""Look at a model without changing it, and at what it computes without what a GPU rounds away."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

# torch.export, hooks for all modules and the switch for cuDNN belong to the process: one thread at a time
_ONE_AT_A_TIME = threading.RLock()


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put every submodule in eval mode, with gradients on, and restore each one's own mode in the end.

    Meanwhile torch does without cuDNN: by default it rounds float32 convolutions to TensorFloat-32, against which
    nothing can be compared, and it takes gradients of recurrent layers in training mode alone.
    """
    with _ONE_AT_A_TIME:
        modes = [(module, module.training) for module in model.modules()]
        cudnn = torch.backends.cudnn.enabled
        try:
            torch.backends.cudnn.enabled = False
            with torch.inference_mode(False), torch.enable_grad():
                for module, _ in modes:
                    module.training = False  # not .eval(), which a module may have overridden
                yield
        finally:
            torch.backends.cudnn.enabled = cudnn
            for module, mode in modes:
                module.training = mode
