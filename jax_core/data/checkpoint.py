"""The state of a long pass over data on disk, so that a fit that was killed goes on from where it was."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

_SECONDS = 0.5  # between states at least, ...
_SHARE = 20  # ... and so many times what the last one took to write


@dataclass(frozen=True)
class Saved:
    """A state.

    Attributes:
        arrays: Of the running result.
        done: Steps that are in it.
        mark: What identifies the data behind them.
    """

    arrays: list[np.ndarray]
    done: int
    mark: list[int]


class Checkpoint:
    """A folder of states, each written whole or not at all; the last but one is kept in case the last is damaged."""

    def __init__(self, folder: str | Path, identity: str) -> None:
        """Open a folder, and make it if there is none.

        Args:
            folder: Of one fit.
            identity: What the fit is of. States of another one are refused.

        Raises:
            ValueError: If the folder holds states of another fit.
        """
        self._folder, self._identity = Path(folder), identity
        self._folder.mkdir(parents=True, exist_ok=True)
        found = [read for name in self._slots for read in [_read(self._folder / name)] if read is not None]
        found += [read for path in self._folder.glob("product-*") for read in [_read(path)] if read is not None][:1]
        if any(metadata["identity"] != identity for _, metadata in found):
            raise ValueError(
                f"{folder} holds the state of another fit (other weights, options, seed or likelihood). Give an empty "
                "folder, or delete this one."
            )
        self._count, self._written, self._cost = 0, time.monotonic(), 0.0

    _slots = ("state-0", "state-1")

    def part(self, name: str) -> Checkpoint:
        """The states of one of several passes, in a folder of their own."""
        return Checkpoint(self._folder / name, self._identity)

    def latest(self) -> Saved | None:
        """The newest state that is whole."""
        states = [(self._folder / name, _read(self._folder / name)) for name in self._slots]
        whole = [(meta["count"], path, arrays, meta) for path, read in states if read for arrays, meta in [read]]
        if not whole:
            return None
        self._count, _, arrays, metadata = max(whole, key=lambda item: item[0])
        return Saved(_in_order(arrays), metadata["done"], metadata["mark"])

    def offer(self, arrays: Sequence[Any], done: int, mark: Sequence[int]) -> None:
        """Write a state if the last one is some time ago."""
        if time.monotonic() - self._written >= max(_SECONDS, _SHARE * self._cost):
            self.save(arrays, done, mark)

    def save(self, arrays: Sequence[Any], done: int, mark: Sequence[int]) -> None:
        """Write a state in the place of the last but one."""
        start = time.monotonic()
        self._count += 1
        described = {"count": self._count, "done": done, "mark": [int(number) for number in mark]}
        self._write(self._slots[self._count % 2], arrays, described)
        self._written = time.monotonic()
        self._cost = self._written - start

    def product(self, number: int) -> tuple[list[np.ndarray], list[int]] | None:
        """The kept result of a product, and the mark of its data."""
        read = _read(self._folder / f"product-{number:06d}")
        return None if read is None else (_in_order(read[0]), read[1]["mark"])

    def keep_product(self, number: int, arrays: Sequence[Any], mark: Sequence[int]) -> None:
        """Keep the result of a product."""
        self._write(f"product-{number:06d}", arrays, {"mark": [int(entry) for entry in mark]})

    def _write(self, name: str, arrays: Sequence[Any], described: dict[str, Any]) -> None:
        named = {f"{i:06d}": np.ascontiguousarray(array) for i, array in enumerate(arrays)}
        text = json.dumps({"identity": self._identity, **described})
        content = save(named, metadata={"state": text, "sha256": _digest(named, text)})
        unfinished = self._folder / f"{name}.part"
        with open(unfinished, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, self._folder / name)
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name, too
        finally:
            os.close(folder)


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Arrays and description of a file; ``None`` for one that is missing, cut short or altered."""
    try:
        data = path.read_bytes()
        arrays = load(data)
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        if metadata["sha256"] != _digest(arrays, metadata["state"]):
            return None
        return arrays, json.loads(metadata["state"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _digest(arrays: dict[str, np.ndarray], text: str) -> str:
    found = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        found.update(f"{name} {arrays[name].shape} {arrays[name].dtype}".encode())
        found.update(np.ascontiguousarray(arrays[name]).tobytes())
    return found.hexdigest()


def _in_order(arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    return [arrays[name] for name in sorted(arrays)]
