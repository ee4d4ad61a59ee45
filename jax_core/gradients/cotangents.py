"""Cotangents of outputs that are zero but for one block: a pixel's classes, of all that an image has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class Cotangents:
    """``R`` cotangents of outputs of one shape, each by its block of neighbouring outputs; they are written out late.

    Attributes:
        block: Which block of a sample's flattened outputs is not zero.
        values: There.
        shape: Of a sample's outputs.
    """

    block: Int[np.ndarray, " R"]
    values: Float[np.ndarray, "R K"]
    shape: tuple[int, ...]

    def __len__(self) -> int:
        """``R``."""
        return len(self.block)

    def __getitem__(self, chosen: Any) -> Cotangents:
        """Some of them, by a slice, a mask or their numbers."""
        return Cotangents(self.block[chosen], self.values[chosen], self.shape)

    def written(self) -> Float[np.ndarray, "R *output"]:
        """All of their numbers."""
        rows, size = self.values.shape
        whole = np.zeros((rows, math.prod(self.shape) // size, size), self.values.dtype)
        whole[np.arange(rows), self.block] = self.values
        return whole.reshape(rows, *self.shape)


def joined(parts: Sequence[Cotangents]) -> Cotangents:
    """Those of several, one after the other."""
    return Cotangents(
        np.concatenate([part.block for part in parts]), np.concatenate([part.values for part in parts]), parts[0].shape
    )
