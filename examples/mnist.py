"""Does it pay? Three networks for digits, and what each way to probabilities makes of them.

    python examples/mnist.py               # about six minutes on two cores
    python examples/mnist.py --seeds 3     # with standard errors
    python examples/mnist.py --full        # curvature of all digits a network was trained on, 10,000 test digits

The networks are the tutorial's CNN (2,200 steps: less sure than it is right), the same trained for longer, and the
same trained on 1,000 digits until it knows them by heart (far surer than it is right). Each is judged on clean digits,
on digits turned by 15 to 75 degrees, and by how well the entropy of its predictions tells foreign images: letters, near
ones, and shapes, far ones. Prints a table a network; writes `results.json` and `nll_by_angle.png` to `--out`.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from digits import DEFAULT_ROOT, load_digits
from methods import Digits, Fits, methods
from models import seed_cnn, train
from shift_report import Judged, judge, save_angles, tables, write_json
from shifts import letters, rotated, shapes
from torch import Tensor
from torch.utils.data import TensorDataset
from tqdm import tqdm

ANGLES = (15, 30, 45, 60, 75)
HELD_OUT = 1_000  # digits that no network is trained on


@dataclass(frozen=True)
class Recipe:
    """How a network is trained."""

    name: str
    digits: int | None
    steps: int
    batch_size: int = 32
    learning_rate: float = 3e-4


RECIPES = (
    Recipe("over-confident: 1,000 digits by heart", 1_000, 3_000, learning_rate=1e-3),
    Recipe("the tutorial's: 2,200 steps", None, 2_200),
    Recipe("trained for longer: 4,000 steps of 64", None, 4_000, batch_size=64, learning_rate=3e-3),
)


@dataclass(frozen=True)
class Sets:
    """Test digits, the same turned, and foreign images."""

    clean: Tensor
    labels: np.ndarray
    turned: dict[int, Tensor]
    turned_labels: np.ndarray
    foreign: dict[str, Tensor]


def make_sets(images: Tensor, labels: Tensor, *, shifted: int) -> Sets:
    """The first ``shifted`` test digits are turned; as many foreign images are drawn."""
    turned = {angle: rotated(images[:shifted], angle) for angle in ANGLES}
    foreign = {"letters": letters(shifted), "shapes": shapes(shifted)}
    return Sets(images, labels.numpy(), turned, labels[:shifted].numpy(), foreign)


def run(seed: int, args: argparse.Namespace) -> list[Judged]:
    """All networks and methods of one seed."""
    torch.manual_seed(seed)
    loaded = load_digits(args.data_root)
    order = np.random.default_rng(seed).permutation(len(loaded.train_labels))
    test = np.random.default_rng(seed).permutation(len(loaded.test_labels))[: None if args.full else args.test_digits]
    images, labels = _tensors(loaded.train_images[order], loaded.train_labels[order])
    held_out = TensorDataset(images[-HELD_OUT:], labels[-HELD_OUT:])
    images, labels = images[:-HELD_OUT], labels[:-HELD_OUT]
    test_images, test_labels = _tensors(loaded.test_images[test], loaded.test_labels[test])
    sets = make_sets(test_images, test_labels, shifted=min(args.shifted, len(test)))
    model = seed_cnn().eval()
    fits, found = Fits(model), []
    start = {name: value.clone() for name, value in model.state_dict().items()}
    for recipe in RECIPES:
        x, y = images[: recipe.digits], labels[: recipe.digits]
        model.load_state_dict(start)
        how = {"steps": max(1, int(recipe.steps * args.training)), "batch_size": recipe.batch_size}
        train(model, x, y, learning_rate=recipe.learning_rate, seed=seed, quiet=args.quiet, **how)
        count = None if args.full else args.curvature_digits
        digits = Digits(TensorDataset(x[:count], y[:count]), len(y), held_out)
        for name, method in tqdm(methods().items(), recipe.name, disable=args.quiet):
            begun = time.perf_counter()
            predict = method(fits, digits)
            fitted = time.perf_counter()
            found.append(judge(recipe.name, name, predict, sets, fit_seconds=fitted - begun))
    return found


def _tensors(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)


def parse_arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each network")
    parser.add_argument("--full", action="store_true", help="all digits for curvature and test")
    parser.add_argument("--test-digits", type=int, default=1_000, help="clean test digits")
    parser.add_argument("--shifted", type=int, default=300, help="turned digits an angle, and images a foreign set")
    parser.add_argument("--curvature-digits", type=int, default=1_000, help="training digits for the curvature")
    parser.add_argument("--training", type=float, default=1.0, help="share of the training steps")
    parser.add_argument("--data-root", type=Path, default=DEFAULT_ROOT, help="where torchvision's MNIST is or goes to")
    parser.add_argument("--out", type=Path, default=Path("results/mnist"), help="where results and figures go to")
    parser.add_argument("--quiet", action="store_true", help="no progress bars, only the tables")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> None:
    args = parse_arguments(given)
    if args.seeds < 1 or not args.training > 0:
        raise SystemExit("--seeds takes a whole number of at least one, --training a positive share.")
    runs = [run(seed, args) for seed in range(args.seeds)]
    print(tables(runs))
    write_json(args.out / "results.json", runs)
    save_angles(runs, args.out / "nll_by_angle.png")
    if not args.quiet:
        print(f"written to {args.out}: results.json, nll_by_angle.png")


if __name__ == "__main__":
    main()
