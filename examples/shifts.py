"""Inputs that are not like the training digits: turned ones, and foreign ones that are drawn here."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from digits import MEAN, STD
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

LETTERS = "ACDEFGHJKMNPQRTUWXY"  # those that no digit is drawn like
DARK = (0 - MEAN) / STD


def rotated(images: Tensor, angle: float) -> Tensor:
    """Images `(N, 1, 28, 28)` turned by `angle` degrees, dark where nothing was."""
    host = np.round((images[:, 0].numpy() * STD + MEAN) * 255).clip(0, 255).astype(np.uint8)
    turned = [np.asarray(Image.fromarray(image).rotate(angle, Image.Resampling.BILINEAR)) for image in host]
    return normalised(np.stack(turned))


def letters(count: int, seed: int = 0) -> Tensor:
    """Capital letters, slightly turned and moved: near to digits."""

    def draw(canvas: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
        at = 8 + int(rng.integers(-2, 3)), 2 + int(rng.integers(-2, 3))
        canvas.text(at, LETTERS[rng.integers(len(LETTERS))], 255, ImageFont.load_default(size=22))

    return _drawn(count, seed, draw)


def shapes(count: int, seed: int = 0) -> Tensor:
    """Filled polygons with a grain: far from digits."""

    def draw(canvas: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
        radii, angles = rng.uniform(6, 13, 7), np.linspace(0, 2 * np.pi, 7)
        corners = [(float(14 + r * np.cos(a)), float(14 + r * np.sin(a))) for r, a in zip(radii, angles, strict=True)]
        canvas.polygon(corners, fill=int(rng.integers(120, 256)))

    drawn = _drawn(count, seed, draw)
    grain = torch.from_numpy(np.random.default_rng(seed + 1).uniform(0.6, 1.0, drawn.shape).astype(np.float32))
    return DARK + (drawn - DARK) * grain


def _drawn(count: int, seed: int, draw: Callable[[ImageDraw.ImageDraw, np.random.Generator], None]) -> Tensor:
    rng, found = np.random.default_rng(seed), []
    for _ in range(count):
        image = Image.new("L", (28, 28))
        draw(ImageDraw.Draw(image), rng)
        found.append(np.asarray(image.rotate(float(rng.uniform(-15, 15)), Image.Resampling.BILINEAR)))
    return normalised(np.stack(found))


def normalised(images: np.ndarray) -> Tensor:
    """Images `(N, 28, 28)` of bytes as the digits are, `(N, 1, 28, 28)`."""
    return torch.from_numpy((images.astype(np.float32) / 255 - MEAN) / STD)[:, None]
