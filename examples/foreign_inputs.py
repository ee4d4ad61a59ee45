"""Which inputs are of a kind that the network was never trained on? Offline, half a minute.

A network for digits is shown letters, which are near to digits, and shapes, which are far from them. Each score should
be higher for the foreign images: the area under its ROC curve is the chance that it is.
"""

from __future__ import annotations

from pathlib import Path

import pictures
import torch
from digits import torch_digits
from matplotlib import pyplot as plt
from models import small_cnn, train
from shifts import letters, shapes
from torch import Tensor
from torch.utils.data import DataLoader

from bridge import Laplace
from jax_core import auroc

Scores = dict[str, Tensor]


def network_scores(model: torch.nn.Module, x: Tensor) -> Scores:
    with torch.no_grad():
        p = model(x).softmax(1)
    return {"network: entropy": torch.special.entr(p).sum(1)}


def laplace_scores(la: Laplace, x: Tensor) -> Scores:
    parts = la.uncertainty(x, n_samples=200)
    return {
        "Laplace: entropy of the probabilities": torch.special.entr(la(x)).sum(1),
        "Laplace: mutual information": parts["mutual_information"],  # of the weights: what more data would settle
    }


def main(
    digits: int = 1_000, steps: int = 1_500, images: int = 300, folder: Path = pictures.RESULTS
) -> dict[str, dict[str, float]]:
    torch.manual_seed(0)
    training, held_out, test = torch_digits(digits, digits, images)
    model = small_cnn()
    train(model, *training.tensors, steps=steps, learning_rate=1e-3, quiet=True)
    la = Laplace(model, likelihood="classification", progress=False)
    la.fit(DataLoader(training, batch_size=128))
    la.optimize_prior_precision(val_loader=DataLoader(held_out, batch_size=250))

    sets = {"digits": test.tensors[0], "letters": letters(images), "shapes": shapes(images)}
    scores = {name: network_scores(model, x) | laplace_scores(la, x) for name, x in sets.items()}

    foreign, found = ("letters", "shapes"), {}
    print(f"{'area under the ROC curve':40}{'letters':>9}{'shapes':>9}")
    for score, known in scores["digits"].items():
        found[score] = {kind: float(auroc(known.numpy(), scores[kind][score].numpy())) for kind in foreign}
        print("{:40}{:9.3f}{:9.3f}".format(score, *found[score].values()))
    draw(scores, folder)
    mistake()
    return found


def draw(scores: dict[str, Scores], folder: Path) -> None:
    figure, axes = plt.subplots(1, len(scores["digits"]), figsize=(12, 3.8), layout="constrained", sharey=True)
    colours = {"digits": pictures.BLUE, "letters": pictures.ORANGE, "shapes": pictures.GREEN}
    for ax, score in zip(axes, scores["digits"], strict=True):
        high = max(float(part[score].max()) for part in scores.values())
        for kind, colour in colours.items():
            style = {"histtype": "stepfilled", "alpha": 0.35} if kind == "digits" else {"histtype": "step"}
            ax.hist(scores[kind][score].numpy(), 25, range=(0, high), color=colour, label=kind, linewidth=2, **style)
        ax.set(xlabel="nats", title=score, yscale="log")
    axes[0].set_ylabel("images")
    axes[0].legend()
    pictures.save(figure, folder, "foreign_inputs")


def mistake() -> None:
    """Images of another size than those of the fit: the posterior knows one shape."""
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(4, 3))
    data = [(torch.randn(8, 1, 28, 28), torch.arange(8) % 3)]
    la = Laplace(model, hessian_structure="full", progress=False).fit(data)
    try:
        la(torch.randn(8, 1, 32, 32))
    except ValueError as error:
        print(f"\nImages of 32 pixels for a posterior of 28:\n  {error}")


if __name__ == "__main__":
    main(folder=pictures.folder())
