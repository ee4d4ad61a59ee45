"""Five lines make the probabilities of a trained classifier honest. Offline, half a minute.

The network has learnt 1,000 digits by heart and is far surer than it is right. Another 1,000 digits, which it was not
trained on, tell temperature scaling and the Laplace approximation how sure it may be.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pictures
import torch
from digits import torch_digits
from matplotlib import pyplot as plt
from models import fit_temperature, small_cnn, train
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from bridge import Laplace
from jax_core import expected_calibration_error
from jax_core.evaluation import bin_metrics
from jax_core.plots import reliability_diagram


def scores(probabilities: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    confidence, right = probabilities.max(1).values.numpy(), (probabilities.argmax(1) == labels).numpy()
    return {
        "accuracy": float(right.mean()),
        "NLL": float(F.nll_loss(probabilities.log(), labels)),
        "ECE": float(expected_calibration_error(confidence, right)),
        "confidence": float(confidence.mean()),
    }


def main(digits: int = 1_000, steps: int = 1_500, folder: Path = pictures.RESULTS) -> dict[str, dict[str, float]]:
    torch.manual_seed(0)
    training, held_out, test = torch_digits(digits, digits, digits)
    train_loader, held_out_loader = DataLoader(training, batch_size=128), DataLoader(held_out, batch_size=250)
    model = small_cnn()
    train(model, *training.tensors, steps=steps, learning_rate=1e-3, quiet=True)

    # the five lines, with the import above
    la = Laplace(model, likelihood="classification", progress=False)
    la.fit(train_loader)
    la.optimize_prior_precision(val_loader=held_out_loader)
    probabilities = la(test.tensors[0])

    with torch.no_grad():
        logits = model(test.tensors[0])
        temperature = fit_temperature(model(held_out.tensors[0]), held_out.tensors[1])
    methods = {
        "network": logits.softmax(1),
        "temperature scaling": (logits / temperature).softmax(1),
        "Laplace": probabilities,
    }

    labels = test.tensors[1]
    found = {name: scores(p, labels) for name, p in methods.items()}
    print(la.report())
    print(f"\n{'method':22}{'accuracy':>9}{'NLL':>8}{'ECE':>8}{'confidence':>12}")
    for name, score in found.items():
        print("{:22}{:9.3f}{:8.3f}{:8.3f}{:12.3f}".format(name, *score.values()))
    draw(methods, labels, folder)
    mistake()
    return found


def draw(methods: dict[str, torch.Tensor], labels: torch.Tensor, folder: Path, bins: int = 10) -> None:
    figure, axes = plt.subplots(1, len(methods), figsize=(11, 4), layout="constrained")
    for ax, (name, p) in zip(axes, methods.items(), strict=True):
        found = bin_metrics(p.max(1).values.numpy(), (p.argmax(1) == labels).numpy(), bins)
        reliability_diagram(np.asarray(found.confidences), np.asarray(found.accuracies), bins, ax=ax, title=name)
    pictures.save(figure, folder, "calibrate_a_classifier")


def mistake() -> None:
    """Targets that say "class 3" to a network of three classes, which are numbered 0, 1 and 2."""
    model = torch.nn.Linear(4, 3)
    loader = DataLoader(TensorDataset(torch.randn(8, 4), torch.full((8,), 3)), batch_size=4)
    try:
        Laplace(model, likelihood="classification").fit(loader)
    except ValueError as error:
        print(f"\nClasses numbered from one, not from zero:\n  {error}")


if __name__ == "__main__":
    main(folder=pictures.folder())
