"""Laplace Redux's setting for MNIST: a LeNet with weight decay, its confidence on foreign images, and its calibration.

The network of Daxberger et al., 2021 (arXiv:2106.14806): LeNet, Adam with weight decay 5e-4 and a cosine schedule,
batches of 128; evidence and probit for the rows that say so. Published there, means over FashionMNIST, KMNIST and
EMNIST: the network's confidence on them 75.0, AUROC by confidence 96.5; Laplace's 67.5 and 96.2. Of these sets those
are taken that lie in ``--data-root`` in torchvision's layout; where none does, letters and shapes that are drawn here,
which are other sets with other figures. ``--full`` reads all training and test digits; else 2,000 and 1,000.
"""

import argparse
import statistics
import time
from pathlib import Path

from common import DATA, alone, digits, main, print_table

HELD_OUT, BATCH, FOREIGN = 1_000, 128, 2_000
FIGURES = ("accuracy", "NLL", "ECE", "turned: NLL", "foreign: confidence", "foreign: AUROC", "seconds")


def lenet():
    """61,706 parameters."""
    from torch import nn

    convolutions = [nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    convolutions += [nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    dense = [nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)]
    return nn.Sequential(*convolutions, *dense)


def train(model, images, labels, epochs):
    import torch

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-len(labels) // BATCH))
    for _ in range(epochs):
        for rows in torch.randperm(len(labels)).split(BATCH):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def foreign_sets(root):
    """Images of other things by the names of their sets, at most 2,000 of each, normalised as the digits are."""
    import torch
    import torchvision
    from shifts import letters, normalised, shapes

    found = {}
    for name, how in (("FashionMNIST", {}), ("KMNIST", {}), ("EMNIST", {"split": "letters"})):
        try:
            data = getattr(torchvision.datasets, name)(root, train=False, download=False, **how).data
        except RuntimeError:
            continue  # not there
        rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:FOREIGN]
        upright = data[rows].transpose(1, 2) if name == "EMNIST" else data[rows]
        found[name] = normalised(upright.numpy())
    return found or {"letters": letters(FOREIGN), "shapes": shapes(FOREIGN)}


def judged(predict, test, labels, foreign):
    """Accuracy, NLL, ECE of digits; NLL of turned ones; mean confidence on foreign images, and AUROC by confidence."""
    import jax.numpy as jnp
    from shift_report import calibration_error, probabilities
    from shifts import rotated

    from jax_core.evaluation import accuracy, auroc, nll_categorical

    clean, targets = probabilities(predict, test), jnp.asarray(labels.numpy())
    found = {"accuracy": accuracy(clean, targets), "NLL": nll_categorical(clean, targets)}
    found["ECE"] = calibration_error(clean, targets)
    few = min(len(test), FOREIGN)
    turned = probabilities(predict, rotated(test[:few], 45))
    found["turned: NLL"] = nll_categorical(turned, targets[:few])
    confidences = [probabilities(predict, images).max(-1) for images in foreign.values()]
    found["foreign: confidence"] = sum(c.mean() for c in confidences) / len(confidences)
    found["foreign: AUROC"] = sum(auroc(-clean.max(-1), -c) for c in confidences) / len(confidences)
    return {name: float(value) for name, value in found.items()}


def by_evidence(make, fits, digits, **how):
    """The prior by the evidence, probabilities by probit, as Laplace Redux has it: ours or laplace-torch's."""
    la = make(fits.model, "classification", **how)
    la.fit(digits.loader())
    la.optimize_prior_precision(method="marglik")
    return lambda x: la(x, pred_type="glm", link_approx="probit")


def rows():
    from functools import partial

    import methods
    from laplace import Laplace as Peer

    from bridge import Laplace

    ours, last = partial(Laplace, progress=False), {"subset_of_weights": "last_layer", "hessian_structure": "kron"}
    return {
        "the network's softmax": methods.network,
        "temperature scaling": methods.temperature,
        "laplace-torch, last layer, kron, evidence": partial(by_evidence, Peer, **last),
        "ours, last layer, kron, evidence": partial(by_evidence, ours, **last),
        "ours, kron, evidence": partial(by_evidence, ours, hessian_structure="kron"),
        "ours, kron_lowrank, evidence": partial(by_evidence, ours),
        "ours, as it comes": methods.held_out,
        "ours, no held-out digits": methods.alone,
        "ours, last layer": methods.last_layer,
    }


def measure(seed, epochs, curvature, tested, root):
    import torch
    from methods import Digits, Fits
    from torch.utils.data import TensorDataset

    torch.manual_seed(int(seed))
    (images, labels), (test, test_labels) = digits(root=root), digits(train=False, root=root)
    order = torch.randperm(len(labels))
    images, labels, drawn = images[order], labels[order], torch.randperm(len(test_labels))[: int(tested)]
    held_out, images, labels = (images[:HELD_OUT], labels[:HELD_OUT]), images[HELD_OUT:], labels[HELD_OUT:]
    start = time.perf_counter()
    model, foreign = train(lenet(), images, labels, int(epochs)), foreign_sets(root)
    found = {"training": time.perf_counter() - start}
    seen = TensorDataset(images[: int(curvature)], labels[: int(curvature)])
    fits, known = Fits(model), Digits(seen, len(labels), TensorDataset(*held_out))
    for name, method in rows().items():
        start = time.perf_counter()
        predict = method(fits, known)
        tuned = time.perf_counter() - start
        figures = judged(predict, test[drawn], test_labels[drawn], foreign) | {"seconds": tuned}
        found |= {f"{name}/{figure}": value for figure, value in figures.items()}
    return found


def table():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="all training digits for the curvature, all test digits")
    parser.add_argument("--epochs", type=int, help="of training: 5, with --full 100 as published")
    parser.add_argument("--seeds", type=int, default=1, help="trainings, of which medians are shown")
    parser.add_argument("--data-root", type=Path, default=DATA, help="where the sets lie, in torchvision's layout")
    args = parser.parse_args()
    epochs = args.epochs or (100 if args.full else 5)
    sizes = (10**6, 10**6) if args.full else (2_000, 1_000)
    runs = [alone(__file__, "measure", seed, epochs, *sizes, args.data_root) for seed in range(args.seeds)]
    found = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    names = ", ".join(foreign_sets(args.data_root))
    print(f"\n{args.seeds} x {epochs} epochs, {found['training']:.0f} s; foreign images: {names}\n")
    places = dict.fromkeys(FIGURES, 3) | {"turned: NLL": 2, "seconds": 1}
    cells = [[row, *(f"{found[f'{row}/{name}']:.{places[name]}f}" for name in FIGURES)] for row in rows()]
    print_table(["", *FIGURES], cells)


WORKERS = {"measure": measure}

if __name__ == "__main__":
    main(WORKERS, table)
