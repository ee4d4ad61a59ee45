"""A timm network for classes of one's own, and a posterior over its last layer. Offline, under a minute.

The images are drawn here: discs, squares and stripes in noise; stars are foreign to the network.
"""

from __future__ import annotations

from pathlib import Path

import pictures
import timm
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from bridge import Laplace

SHAPES = ("disc", "square", "stripes")
SIDE = 32


def images(count: int, seed: int, *, foreign: bool = False, noise: float = 0.7) -> tuple[torch.Tensor, torch.Tensor]:
    """Images ``(count, 3, 32, 32)`` and their classes."""
    drawn = torch.Generator().manual_seed(seed)
    labels = torch.randint(len(SHAPES), (count,), generator=drawn)
    centres = torch.randint(10, SIDE - 10, (count, 2, 1, 1), generator=drawn)
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    dy, dx = y - centres[:, 0], x - centres[:, 1]
    disc, square = (dy**2 + dx**2 < 49), (dy.abs() < 7) & (dx.abs() < 7)
    stripes, star = (dx % 6 < 3) & square, dy.abs() * dx.abs() < 6
    kinds = torch.stack([star, star, star] if foreign else [disc, square, stripes], 1)
    grey = kinds[torch.arange(count), labels].float()[:, None].expand(-1, 3, -1, -1)
    return grey + noise * torch.randn(count, 3, SIDE, SIDE, generator=drawn), labels


def trained(train: DataLoader, epochs: int) -> torch.nn.Module:
    model = timm.create_model("resnet10t", num_classes=len(SHAPES))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    model.train()
    for _ in range(epochs):
        for x, y in train:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval()


def main(count: int = 192, epochs: int = 20, folder: Path = pictures.RESULTS) -> None:
    torch.manual_seed(0)
    train = DataLoader(TensorDataset(*images(count, 0)), batch_size=32, shuffle=True)
    model = trained(train, epochs)
    la = Laplace(model, subset_of_weights="last_layer", hessian_structure="full", progress=False)
    la.fit(train)
    la.optimize_prior_precision(val_loader=DataLoader(TensorDataset(*images(128, 1)), batch_size=64))

    chosen = f"prior precision {la.prior_precision:.3g}, logit temperature {la.logit_temperature:.3g}"
    print(f"The last layer is {la.subset.name!r}; {chosen}")
    print(f"{'images':12}{'method':10}{'accuracy':>9}{'NLL':>8}{'confidence':>12}")
    found: dict[str, dict[str, float]] = {}
    tests = {"as trained": images(256, 2), "noisier": images(256, 3, noise=1.0), "stars": images(256, 4, foreign=True)}
    for name, (x, y) in tests.items():
        with torch.no_grad():
            network = model(x).softmax(1)
        for method, p in (("network", network), ("Laplace", la(x))):
            sure = float(p.max(1).values.mean())
            found.setdefault(name, {})[method] = sure
            known = name != "stars"
            right = f"{float((p.argmax(1) == y).float().mean()):9.3f}" if known else f"{'':9}"
            nll = f"{float(F.nll_loss(p.log(), y)):8.3f}" if known else f"{'':8}"
            print(f"{name:12}{method:10}{right}{nll}{sure:12.3f}")
    pictures.bars(found, "mean confidence", folder, "timm_last_layer")
    mistake(model)


def mistake(model: torch.nn.Module) -> None:
    """The last layer by the name that another architecture has for it; left out, it is found."""
    try:
        Laplace(model, subset_of_weights="last_layer", last_layer_name="classifier")
    except ValueError as error:
        print(f"\nA layer that is not there:\n  {error}")


if __name__ == "__main__":
    main(folder=pictures.folder())
