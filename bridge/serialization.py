"""Tensors and a description of them as bytes that notice when they were altered."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

_FORMAT = "torch-laplace-bridge 2"
_ALIGNMENT = 8


@dataclass(frozen=True)
class Record:
    """What was kept.

    Attributes:
        tensors: By name.
        described: The description.
        source: What messages call it.
    """

    tensors: dict[str, torch.Tensor]
    described: dict[str, Any]
    source: str


def pack(tensors: dict[str, torch.Tensor], described: dict[str, Any]) -> bytes:
    """The content of a safetensors file, with a hash over all of it."""
    text = json.dumps(described)
    return save(tensors, metadata={"format": _FORMAT, "fit": text, "sha256": _digest(tensors, text)})


def unpack(data: bytes, source: str) -> Record:
    """Undo :func:`pack`.

    Raises:
        ValueError: If the bytes are of another kind, or were cut short or altered.
    """
    try:
        tensors = load(data)
        length = int.from_bytes(data[:_ALIGNMENT], "little")
        metadata = json.loads(data[_ALIGNMENT : _ALIGNMENT + length]).get("__metadata__") or {}
    except (SafetensorError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise ValueError(
            f"{source} is no safetensors file, or was cut short or altered ({error}). Give a file that bridge.save has "
            "written."
        ) from None
    if not isinstance(metadata, dict) or metadata.get("format") != _FORMAT:
        raise ValueError(f"{source} was not written by bridge.save (or by another version of it).")
    if _digest(tensors, metadata.get("fit", "")) != metadata.get("sha256"):
        raise ValueError(f"{source} was altered after bridge.save wrote it: its checksum differs. Save it again.")
    return Record(tensors, json.loads(metadata["fit"]), source)


def _digest(tensors: dict[str, torch.Tensor], text: str) -> str:
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
