"""Which line of the user's code, in which module, is running or stood in a traceback."""

from __future__ import annotations

import contextlib
import functools
import linecache
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

# where lines of a traceback lie that are not the model's: torch, this package, the standard library, no file
_OURS = str(Path(__file__).parent)
_NOT_THE_USERS = (
    *torch.__path__,
    _OURS,
    str(Path(contextlib.__file__).parent) + "/contextlib",
    "<",
)


@functools.cache
def is_users(filename: str) -> bool:
    """Whether a file is neither torch's nor this package's."""
    return not filename.startswith(_NOT_THE_USERS)


def running_line() -> tuple[str, int] | None:
    """The file and the line number of the innermost call that is the model's own, and not of who traces it."""
    frame: Any = sys._getframe(2)
    while frame is not None and not is_users(frame.f_code.co_filename):
        if frame.f_code.co_name == "record" and frame.f_code.co_filename.startswith(_OURS):
            return None
        frame = frame.f_back
    return None if frame is None else (frame.f_code.co_filename, frame.f_lineno)


def running_module(names: Mapping[int, str]) -> str:
    """The innermost module that is running, among those named by their `id`."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, torch.nn.Module) and id(owner) in names:
            return names[id(owner)]
        frame = frame.f_back
    return "model"


def module_names(model: torch.nn.Module) -> dict[int, str]:
    """The modules' paths, by `id`."""
    return {id(module): f"model.{name}" if name else "model" for name, module in model.named_modules()}


def shown(line: tuple[str, int] | None) -> str:
    """`, file, line 3: code`, or nothing."""
    return "" if line is None else f", {line[0]}, line {line[1]}: {linecache.getline(*line).strip()}"


def raising_line(error: BaseException) -> tuple[str, int] | None:
    """The innermost line of the user's code in a traceback."""
    own = [(f.filename, f.lineno or 0) for f in traceback.extract_tb(error.__traceback__) if is_users(f.filename)]
    return own[-1] if own else None
