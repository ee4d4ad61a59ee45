"""What each structure of the posterior keeps and costs. Offline, a minute and a half.

Times are the shortest of three, after a first run: JAX compiles each program once in a process. They depend on the
machine and on what else runs there; ratios less so.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pictures
import torch
from digits import torch_digits
from matplotlib import pyplot as plt
from models import small_cnn, train
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from bridge import Laplace

STRUCTURES: dict[str, dict[str, Any]] = {
    "kron_lowrank (default)": {},
    "kron_lowrank, rank 25": {"rank": 25},
    "lowrank": {"hessian_structure": "lowrank"},
    "ekfac": {"hessian_structure": "ekfac"},
    "kron": {"hessian_structure": "kron"},
    "diag": {"hessian_structure": "diag"},
    "last layer, kron": {"subset_of_weights": "last_layer", "hessian_structure": "kron"},
}


def seconds(work: Callable[[], object]) -> float:
    """The shortest of three, after one that compiles."""
    work()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def main(
    digits: int = 500, steps: int = 600, names: tuple[str, ...] = tuple(STRUCTURES), folder: Path = pictures.RESULTS
) -> dict[str, dict[str, float]]:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # torch's threads spin while they wait, beside JAX's own
    training, test = torch_digits(digits, 200)
    model, loader, (x, y) = small_cnn(), DataLoader(training, batch_size=100), test.tensors
    train(model, *training.tensors, steps=steps, learning_rate=1e-3, quiet=True)

    found = {}
    print(f"{'structure':24}{'numbers kept':>14}{'fit (s)':>9}{'200 predictions (s)':>21}{'NLL':>7}")
    for name in names:
        la = Laplace(model, prior_precision=100.0, progress=False, **STRUCTURES[name])
        row = {"fit": seconds(lambda la=la: la.fit(loader)), "prediction": seconds(lambda la=la: la(x))}
        row["kept"] = sum(np.size(leaf) for leaf in jax.tree.leaves(la.fitted.curvature))
        row["nll"] = float(F.nll_loss(la(x).log(), y))
        found[name] = row
        print(f"{name:24}{row['kept']:14,}{row['fit']:9.2f}{row['prediction']:21.2f}{row['nll']:7.3f}")
    draw(found, folder)
    mistake()
    return found


def draw(found: dict[str, dict[str, float]], folder: Path) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained", sharey=True)
    columns = {"kept": "numbers kept", "fit": "fit (s)", "prediction": "200 predictions (s)"}
    colours = (pictures.BLUE, pictures.ORANGE, pictures.GREEN)
    for ax, (key, label), colour in zip(axes, columns.items(), colours, strict=True):
        values = [row[key] for row in found.values()]
        bars = ax.barh(list(found), values, color=colour)
        ax.bar_label(bars, [f"{v:,}" if key == "kept" else f"{v:.2f}" for v in values], padding=3, fontsize=8)
        scale = {"xscale": "log", "xlim": (min(values) / 3, 20 * max(values))} if key == "kept" else {}
        ax.set(xlabel=label, **scale)
        ax.margins(x=0.2)
    axes[0].set_ylabel("structure")
    axes[0].invert_yaxis()
    pictures.save(figure, folder, "memory_and_speed")


def mistake() -> None:
    """The dense matrix of a network of a million parameters: four terabytes."""
    model = torch.nn.Sequential(torch.nn.Linear(1_000, 1_000), torch.nn.Linear(1_000, 3))
    data = TensorDataset(torch.randn(8, 1_000), torch.arange(8) % 3)
    try:
        Laplace(model, hessian_structure="full", progress=False).fit(DataLoader(data, batch_size=4))
    except (MemoryError, ValueError) as error:
        print(f"\nA dense posterior of a million parameters:\n  {error}")


if __name__ == "__main__":
    main(folder=pictures.folder())
