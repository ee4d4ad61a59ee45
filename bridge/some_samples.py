"""A few samples of a loader's data set, for a posterior in function space."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, Subset


def some_samples(loader: Iterable[Any], count: int, seed: int) -> tuple[DataLoader[Any], int]:
    """A loader of ``count`` samples, each as likely, in the batches of another, and how many that has.

    Raises:
        TypeError: If it is no ``DataLoader`` of a data set with a length.
        ValueError: If it has fewer samples.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        raise TypeError(
            f"hessian_structure='gp' draws n_subset={count} samples from a DataLoader's data set, and a "
            f"{type(loader).__name__} was given. Give a DataLoader of a map-style data set."
        )
    data: Any = loader.dataset
    if count > len(data):
        raise ValueError(f"n_subset={count} is more than the {len(data)} samples of the data set. Give fewer.")
    chosen = np.random.default_rng(seed).choice(len(data), count, replace=False)
    batch = loader.batch_size or count
    return DataLoader(Subset(data, chosen.tolist()), batch, collate_fn=loader.collate_fn), len(data)
