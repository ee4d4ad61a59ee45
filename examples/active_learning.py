"""Which images are worth a label? Any, those of which the network is unsure, or its posterior? Offline, a minute.

A network starts with a few labelled digits. In each round some more are labelled, drawn at random, or in proportion to
a power of their entropy, or of the mutual information of label and weights (Houlsby et al., arXiv:1112.5745). The
highest ones alone would resemble one another (Kirsch et al., arXiv:2106.12059).

The pool is what pools often are: three in four of its images, zeros and ones, are of kinds that are soon known. Where
all digits are equally frequent (``share=1``) random labels were no worse. The prior precision was chosen on this pool:
layer, prior and power are the best of eight variants on two seeds. At 1 the posterior of a network that has fitted its
few labels is wide everywhere, and picks as if at random.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pictures
import torch
from digits import torch_digits
from matplotlib import pyplot as plt
from models import descend
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from bridge import Laplace

A_ROUND, POWER = 20, 4
WAYS = ("random", "network's entropy", "mutual information")


def small(images: Tensor) -> Tensor:
    """Digits of 7 x 7 pixels as vectors, so that a round takes a second."""
    return F.avg_pool2d(images, 4).flatten(1)


def unbalanced(data: TensorDataset, share: float) -> TensorDataset:
    """All zeros and ones, and of the other digits a share."""
    images, labels = data.tensors
    kept = (labels < 2) | (torch.rand(len(labels), generator=torch.Generator().manual_seed(0)) < share)
    return TensorDataset(images[kept], labels[kept])


def train(model: nn.Sequential, x: Tensor, y: Tensor, steps: int = 200) -> None:
    """From new weights on: a network that is trained further keeps the mistakes of its first labels."""
    for layer in model:
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    descend(optimizer, lambda: F.cross_entropy(model(x), y), steps)


def curve(how: str, seed: int, rounds: int, pool: TensorDataset, test: TensorDataset) -> list[float]:
    """Test accuracy after each round."""
    torch.manual_seed(seed)  # all ways begin alike
    images, labels = pool.tensors
    chosen = torch.randperm(len(labels))[:A_ROUND]
    model = nn.Sequential(nn.Linear(49, 50), nn.ReLU(), nn.Linear(50, 10))
    la = Laplace(model, subset_of_weights="last_layer", hessian_structure="full", prior_precision=30.0, progress=False)
    accuracies = []
    for _ in range(rounds):
        train(model, images[chosen], labels[chosen])
        with torch.no_grad():
            accuracies.append(float((model(test.tensors[0]).argmax(1) == test.tensors[1]).float().mean()))
        worth = torch.ones(len(labels))
        if how == "mutual information":
            la.fit(DataLoader(TensorDataset(images[chosen], labels[chosen]), batch_size=A_ROUND))
            worth = la.uncertainty(images, n_samples=100)["mutual_information"].clamp_min(1e-6)
        elif how == "network's entropy":
            with torch.no_grad():
                worth = torch.special.entr(model(images).softmax(1)).sum(1).clamp_min(1e-6)
        worth = (worth / worth.max()) ** POWER
        worth[chosen] = 0.0
        chosen = torch.cat([chosen, torch.multinomial(worth, A_ROUND)])
    return accuracies


def main(seeds: int = 3, rounds: int = 7, share: float = 0.1, folder: Path = pictures.RESULTS) -> dict[str, np.ndarray]:
    torch.set_num_threads(1)  # a network this small gains nothing from a second one
    pool, test = (TensorDataset(small(part.tensors[0]), part.tensors[1]) for part in torch_digits(6_000, 2_000))
    pool = unbalanced(pool, share)
    found = {how: np.array([curve(how, seed, rounds, pool, test) for seed in range(seeds)]) for how in WAYS}
    labels = A_ROUND * np.arange(1, rounds + 1)
    print("test accuracy, mean and spread over seeds")
    print(f"{'labels':>7}" + "".join(f"{how:>22}" for how in WAYS))
    for i, count in enumerate(labels):
        print(f"{count:7}" + "".join(f"{found[h][:, i].mean():14.3f} ± {found[h][:, i].std():.3f}" for h in WAYS))
    draw(labels, found, folder)
    mistake()
    return found


def draw(labels: np.ndarray, found: dict[str, np.ndarray], folder: Path) -> None:
    figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    colours, lines = (pictures.ORANGE, pictures.GREEN, pictures.BLUE), ("--", ":", "-")
    for (how, rows), colour, line in zip(found.items(), colours, lines, strict=True):
        mean, spread = rows.mean(0), rows.std(0)
        ax.plot(labels, mean, line, color=colour, marker="o", label=how)
        ax.fill_between(labels, mean - spread, mean + spread, color=colour, alpha=0.2, lw=0)
    ax.set(xlabel="labelled digits", ylabel="test accuracy (band: spread over seeds)")
    ax.legend()
    pictures.save(figure, folder, "active_learning")


def mistake() -> None:
    """The posterior is asked after the network was trained on with the new labels, and before a new fit."""
    model = nn.Linear(4, 3)
    la = Laplace(model, hessian_structure="full", progress=False).fit([(torch.randn(8, 4), torch.arange(8) % 3)])
    with torch.no_grad():
        model.weight += 0.1  # training
    try:
        la.uncertainty(torch.randn(2, 4))
    except RuntimeError as error:
        print(f"\nA posterior of the round before:\n  {error}")


if __name__ == "__main__":
    main(folder=pictures.folder())
