"""Where in an image is the network unsure? A class for each pixel, and an uncertainty for each. Offline, half a minute.

Images are drawn here: a disc and a square, one over the other, in noise. Outputs are ``(B, C, H, W)``, as torch's own
loss has them, and so are the probabilities.
"""

from __future__ import annotations

from pathlib import Path

import pictures
import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from bridge import Laplace
from jax_core import auroc

SIDE, CLASSES = 16, ("nothing", "disc", "square")


def images(count: int, seed: int, noise: float = 0.5) -> TensorDataset:
    """Images ``(count, 1, 16, 16)`` and a class per pixel, ``(count, 16, 16)``."""
    drawn = torch.Generator().manual_seed(seed)
    dy, dx = (
        torch.arange(SIDE).view(shape) - torch.randint(3, SIDE - 3, (2, count, 1, 1), generator=drawn)
        for shape in ((-1, 1), (1, -1))
    )
    labels = torch.zeros(count, SIDE, SIDE, dtype=torch.long)
    labels[dy[0] ** 2 + dx[0] ** 2 < 14] = 1
    labels[(dy[1].abs() < 3) & (dx[1].abs() < 3)] = 2
    grey = torch.tensor([0.0, 1.0, 1.5])[labels]
    return TensorDataset((grey + noise * torch.randn(grey.shape, generator=drawn)).unsqueeze(1), labels)


def trained(data: TensorDataset, epochs: int) -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=2, dilation=2),
        nn.ReLU(),
        nn.Conv2d(12, len(CLASSES), 1),
    )
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(epochs):
        for x, y in DataLoader(data, batch_size=10, shuffle=True):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval()


def main(count: int = 30, epochs: int = 100, folder: Path = pictures.RESULTS) -> dict[str, float]:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # a network this small gains nothing from a second one
    training, held_out, test = images(count, 0), images(30, 1), images(40, 2)
    model = trained(training, epochs)

    la = Laplace(model, likelihood=nn.CrossEntropyLoss(), hessian_structure="full", progress=False)  # classes on axis 1
    la.fit(DataLoader(training, batch_size=10))
    la.optimize_prior_precision(val_loader=DataLoader(held_out, batch_size=10))

    x, y = test.tensors
    with torch.no_grad():
        network = model(x).softmax(1)
    probabilities, _ = la.predict(DataLoader(test, batch_size=10))  # (40, 3, 16, 16)
    found = {}
    print(f"{'method':10}{'accuracy':>9}{'NLL of a pixel':>16}{'AUROC of errors':>17}")
    for name, p in (("network", network), ("Laplace", probabilities)):
        wrong = p.argmax(1) != y
        entropy = torch.special.entr(p).sum(1)  # high where the class is wrong?
        found[name] = float(F.nll_loss(p.log(), y))
        told = float(auroc(entropy[~wrong].numpy(), entropy[wrong].numpy()))
        print(f"{name:10}{1 - float(wrong.float().mean()):9.3f}{found[name]:16.3f}{told:17.3f}")
    draw(la, x[:3], y[:3], folder)
    mistake()
    return found


def draw(la: Laplace, x: Tensor, y: Tensor, folder: Path) -> None:
    """Three images: as they are, the truth, the prediction, and the two parts of its uncertainty."""
    p, parts = la(x), la.uncertainty(x, n_samples=200)
    columns = {
        "image": (x[:, 0], "gray", None),
        "truth": (y, "cividis", 2),
        "likeliest class": (p.argmax(1), "cividis", 2),
        "of the data (nats)": (parts["expected_entropy"], "magma", 1.1),
        "of the weights (nats)": (parts["mutual_information"], "magma", 0.2),
    }
    figure, axes = plt.subplots(len(x), len(columns), figsize=(11, 6), layout="constrained")
    for column, (title, (shown, colours, high)) in zip(axes.T, columns.items(), strict=True):
        limits = {} if high is None else {"vmin": 0, "vmax": high}
        for ax, image in zip(column, shown, strict=True):
            drawn = ax.imshow(image.numpy(), cmap=colours, **limits)
            ax.set(xticks=[], yticks=[])
        column[0].set_title(title)
        if "nats" in title:
            figure.colorbar(drawn, ax=column, location="bottom", shrink=0.9)
    figure.supylabel("one image a row, row of pixels")
    figure.supxlabel("column of pixels")
    pictures.save(figure, folder, "segmentation")


def mistake() -> None:
    """The name of the likelihood has classes on the last axis; here that is the width of an image."""
    try:
        Laplace(nn.Conv2d(1, 3, 1), likelihood="classification").fit(DataLoader(images(4, 0), batch_size=2))
    except ValueError as error:
        print(f"\nlikelihood='classification' for classes on axis 1:\n  {error}")


if __name__ == "__main__":
    main(folder=pictures.folder())
