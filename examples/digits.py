"""Real digits: torchvision's MNIST where it can be had, the repository's own 12,000 otherwise."""

from __future__ import annotations

import contextlib
import io
import itertools
import socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch.utils.data import TensorDataset
    from torchvision.datasets import MNIST

HERE = Path(__file__).resolve().parent
DEFAULT_ROOT = HERE.parent / "data"
PACKAGED = HERE / "data" / "mnist_subset.npz"
MEAN, STD = 0.1307, 0.3081
DOWNLOAD_TIMEOUT_S = 15.0


@dataclass(frozen=True)
class Digits:
    """Normalised images `(N, 28, 28, 1)` in float32 and their labels in int64."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    source: str

    def split_train(self, held_out: int, seed: int) -> tuple[Digits, np.ndarray, np.ndarray]:
        """These digits less `held_out` of the training ones, drawn at random, and those images and labels."""
        order = np.random.default_rng(seed).permutation(len(self.train_labels))
        kept, held = order[held_out:], order[:held_out]
        less = replace(self, train_images=self.train_images[kept], train_labels=self.train_labels[kept])
        return less, self.train_images[held], self.train_labels[held]


def _normalised(images: np.ndarray) -> np.ndarray:
    return ((images.astype(np.float32) / 255 - MEAN) / STD)[..., None]


def _full_mnist(root: Path) -> tuple[MNIST, MNIST] | None:
    """Both halves of torchvision's MNIST, downloaded if need be; None where there is no way to them."""
    from torchvision.datasets import MNIST

    def both(download: bool) -> tuple[MNIST, MNIST]:
        return MNIST(root, train=True, download=download), MNIST(root, train=False, download=download)

    with contextlib.suppress(RuntimeError):  # not there yet
        return both(download=False)
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # torchvision prints every mirror it fails at
            return both(download=True)
    except (OSError, RuntimeError):
        return None
    finally:
        socket.setdefaulttimeout(patience)


def load_digits(data_root: str | Path | None = None) -> Digits:
    """Digits from `data_root`, from the network, or from the repository, in this order."""
    root = DEFAULT_ROOT if data_root is None else Path(data_root)
    full = _full_mnist(root)
    if full is not None:
        images = [_normalised(half.data.numpy()) for half in full]
        labels = [half.targets.numpy().astype(np.int64) for half in full]
        source = "torchvision's MNIST"
    else:
        images, labels = _packaged()
        source = "the subset of MNIST that the repository carries (the full set is neither here nor to be downloaded)"
    counts = f"{len(labels[0]):,} training and {len(labels[1]):,} test digits"
    return Digits(images[0], labels[0], images[1], labels[1], f"{counts}: {source}")


def _packaged() -> tuple[list[np.ndarray], list[np.ndarray]]:
    with np.load(PACKAGED) as packed:
        images = [_normalised(packed[f"{half}_images"]) for half in ("train", "test")]
        return images, [packed[f"{half}_labels"].astype(np.int64) for half in ("train", "test")]


def torch_digits(*counts: int) -> list[TensorDataset]:
    """Data sets of so many digits, images ``(N, 1, 28, 28)``; the last of test digits, the others of training ones."""
    import torch
    from torch.utils.data import TensorDataset

    images, labels = _packaged()
    ends = np.cumsum((0, *counts[:-1]))
    parts = [(0, slice(a, b)) for a, b in itertools.pairwise(ends)] + [(1, slice(counts[-1]))]
    return [
        TensorDataset(torch.from_numpy(images[half][part][..., 0]).unsqueeze(1), torch.from_numpy(labels[half][part]))
        for half, part in parts
    ]
