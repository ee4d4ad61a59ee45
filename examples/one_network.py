"""Calibrated digits: what Laplace makes of a CNN trained in torch, beside what else one might do.

    python examples/one_network.py                     # the tutorial's CNN
    python examples/one_network.py --full              # curvature of every training digit, all test digits
    python examples/one_network.py --model nnx-docs    # 824,458 parameters

Trains the CNN, then compares ways to probabilities on the test digits: the network's softmax; temperature scaling;
Laplace as the laplax tutorial sets it up; Laplace with its prior tuned on held-out digits; the same weights in
flax.nnx, on `jax_core` alone; and Laplace with the prior that the evidence prefers, which needs no held-out digits.
Prints a table; writes `results.json` and the figures to `--out`.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from digits import DEFAULT_ROOT, Digits, load_digits
from models import MODELS, count_parameters, fit_temperature, train
from nnx_laplace import fit_nnx_laplace
from report import (
    Prediction,
    save_calibration,
    save_shift,
    save_spectrum,
    score,
    table,
    write_json,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from bridge import Laplace

T = TypeVar("T")

RANK = 100
BATCH_SIZE = 32
HELD_OUT = 1_000  # digits that training does not see, for the temperature
CURVATURE_DIGITS, TEST_DIGITS = 2_000, 2_000  # --full takes all of both
TUTORIAL_BATCHES, TUTORIAL_PRIOR_PRECISION, TUTORIAL_SAMPLES = 4, 10_000.0, 30
PREDICT_BATCH = 500
PRIOR_PRECISIONS = [10.0**exponent for exponent in range(7)]


@dataclass(frozen=True)
class Data:
    """The digits as torch tensors, images `(N, 1, 28, 28)`."""

    train: TensorDataset
    held_out: TensorDataset
    test: TensorDataset
    source: str

    @classmethod
    def from_digits(cls, digits: Digits, seed: int, *, test_digits: int) -> Data:
        kept, images, labels = digits.split_train(HELD_OUT, seed)
        # at random, as the second half of MNIST's test set is harder than the first
        test = np.random.default_rng(seed).permutation(len(digits.test_labels))[:test_digits]
        pairs = [
            (kept.train_images, kept.train_labels),
            (images, labels),
            (digits.test_images[test], digits.test_labels[test]),
        ]
        parts = [TensorDataset(channels_first(x), torch.from_numpy(y)) for x, y in pairs]
        return cls(*parts, source=digits.source)

    def curvature_subset(self, size: int) -> TensorDataset:
        # training data are in random order, so the first ones are a random subset
        return TensorDataset(*(tensor[:size] for tensor in self.train.tensors))


def channels_last(images: Tensor) -> np.ndarray:
    return np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())


def channels_first(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def predict(
    name: str,
    method: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    fit_seconds: float,
    quiet: bool,
) -> Prediction:
    """Probabilities of a method on all images, and the seconds they took."""
    start = time.perf_counter()
    with torch.no_grad():
        batches = tqdm(images.split(PREDICT_BATCH), f"predict: {name}", leave=False, disable=quiet)
        probabilities = torch.cat([method(batch) for batch in batches]).numpy()
    return Prediction(name, probabilities, fit_seconds, time.perf_counter() - start)


def with_temperature(model: nn.Module, data: Data) -> tuple[Callable[[Tensor], Tensor], float]:
    """The softmax at the temperature that suits the held-out digits."""
    images, labels = data.held_out.tensors
    with torch.no_grad():
        logits = torch.cat([model(batch) for batch in images.split(PREDICT_BATCH)])
    temperature = fit_temperature(logits, labels)
    return (lambda x: (model(x) / temperature).softmax(-1)), temperature


def as_in_the_tutorial(model: nn.Module, data: Data, *, quiet: bool) -> Callable[[Tensor], Tensor]:
    """Four batches of 32 stand for the training set, the prior is set by hand, the predictive samples."""
    la = Laplace(
        model,
        likelihood="classification",
        hessian_structure="lowrank",
        rank=RANK,
        method="lanczos",
        prior_precision=TUTORIAL_PRIOR_PRECISION,
        progress=not quiet,
    )
    subset = data.curvature_subset(TUTORIAL_BATCHES * BATCH_SIZE)
    la.fit(DataLoader(subset, batch_size=BATCH_SIZE), num_total_samples=len(data.train))
    return lambda x: la(x, link_approx="mc", n_samples=TUTORIAL_SAMPLES)


def as_a_user_would(model: nn.Module, data: Data, *, digits: int, quiet: bool) -> Laplace:
    """Curvature of many digits, the prior tuned on held-out ones, the predictive in closed form."""
    la = Laplace(
        model,
        likelihood="classification",
        hessian_structure="lowrank",
        rank=RANK,
        progress=not quiet,
    )
    loader = DataLoader(data.curvature_subset(digits), batch_size=128)
    la.fit(loader, num_total_samples=len(data.train))
    with warnings.catch_warnings():  # the edge of the grid is an answer here: see the README
        warnings.simplefilter("ignore", UserWarning)
        held_out = DataLoader(data.held_out, batch_size=PREDICT_BATCH)
        la.optimize_prior_precision(method="gridsearch", val_loader=held_out, grid=PRIOR_PRECISIONS)
    return la


def timed(function: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    return function(), time.perf_counter() - start


def compare(model: nn.Module, data: Data, args: argparse.Namespace) -> tuple[list[Prediction], Laplace]:
    """The rows of the table, and the Laplace behind the last."""
    images, quiet = data.test.tensors[0], args.quiet
    digits = len(data.train) if args.full else min(CURVATURE_DIGITS, len(data.train))

    def row(name: str, method: Callable[[Tensor], Tensor], seconds: float) -> Prediction:
        return predict(name, method, images, fit_seconds=seconds, quiet=quiet)

    rows = [row("MAP: the network's softmax", lambda x: model(x).softmax(-1), 0.0)]

    (scaled, temperature), seconds = timed(lambda: with_temperature(model, data))
    rows.append(row(f"temperature scaling, T = {temperature:.3f}", scaled, seconds))

    tutorial, seconds = timed(lambda: as_in_the_tutorial(model, data, quiet=quiet))
    rows.append(row(f"Laplace, tutorial: prior {TUTORIAL_PRIOR_PRECISION:.3g}", tutorial, seconds))

    la, seconds = timed(lambda: as_a_user_would(model, data, digits=digits, quiet=quiet))
    rows.append(row(f"Laplace, held out: prior {la.prior_precision:.3g}", la, seconds))

    subset = data.curvature_subset(digits).tensors
    nnx_predict, seconds = timed(
        lambda: fit_nnx_laplace(
            args.model,
            {name: value.detach().numpy() for name, value in model.named_parameters()},
            channels_last(subset[0]),
            subset[1].numpy(),
            num_total_samples=len(data.train),
            prior_precision=float(la.prior_precision),
            options=la.options,
        )
    )
    in_flax = row("the same in flax.nnx, no torch", lambda x: torch.from_numpy(nnx_predict(channels_last(x))), seconds)
    rows.append(in_flax)

    with warnings.catch_warnings():  # that its predictions are worse than the network's is what the row shows
        warnings.simplefilter("ignore", UserWarning)
        found, seconds = timed(lambda: la.optimize_prior_precision(method="marglik"))
    name = f"Laplace, evidence: prior {found.prior_precision:.3g}"
    rows.append(row(name, la, rows[3].fit_seconds + seconds))
    return rows, la


def eigenvalues(la: Laplace) -> np.ndarray:
    """Of the curvature, largest first."""
    return np.asarray(la.fitted.curvature.s)


def describe(model: nn.Module) -> str:
    """How large the curvature would be, were it ever written out."""
    size = count_parameters(model)
    entries, tera = size**2, 4 * size**2 / 1e12
    dense = f"{tera:.3f} TB" if tera >= 1 else f"{1000 * tera:.1f} GB"
    return f"{size:,} parameters: a dense GGN would have {entries:,} entries, {dense}"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), default="seed", help="which CNN to train")
    parser.add_argument("--steps", type=int, default=2_200, help="training steps, batches of 32")
    parser.add_argument("--epochs", type=int, help="train for whole epochs instead of --steps")
    parser.add_argument("--full", action="store_true", help="all training and test digits, not 2,000 of each")
    parser.add_argument("--data-root", type=Path, default=DEFAULT_ROOT, help="where torchvision's MNIST is or goes to")
    parser.add_argument("--out", type=Path, default=Path("results/one_network"), help="where results and figures go to")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the batches and the held-out digits")
    parser.add_argument("--quiet", action="store_true", help="no progress bars, only the table")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    say = (lambda line: None) if args.quiet else print
    torch.manual_seed(args.seed)
    digits = load_digits(args.data_root)
    test_digits = len(digits.test_labels) if args.full else min(TEST_DIGITS, len(digits.test_labels))
    data = Data.from_digits(digits, args.seed, test_digits=test_digits)
    say(data.source)
    say(f"compared on {test_digits:,} of the test digits")
    model = MODELS[args.model]()
    say(describe(model))

    steps = args.steps if args.epochs is None else args.epochs * (len(data.train) // BATCH_SIZE)
    train(model, *data.train.tensors, steps=steps, batch_size=BATCH_SIZE, seed=args.seed, quiet=args.quiet)
    rows, la = compare(model, data, args)

    labels = data.test.tensors[1].numpy()
    scores = [score(row, labels) for row in rows]
    gap = float(np.abs(rows[3].probabilities - rows[4].probabilities).max())
    print(table(scores))
    say(f"largest difference in probability between torch's and flax's Laplace: {gap:.1e}")

    settings = {name: str(v) if isinstance(v, Path) else v for name, v in vars(args).items() if name != "quiet"}
    found = {
        "steps": steps,
        "data": data.source,
        "test_digits": test_digits,
        "parameters": count_parameters(model),
        "largest_gap_to_flax": gap,
    }
    write_json(args.out / "results.json", settings | found, scores)
    save_calibration([row for row in rows if row is not rows[4]], labels, args.out)
    save_shift(rows[0], rows[2], labels, args.out)
    save_spectrum(eigenvalues(la), float(la.prior_precision), args.out)
    say(f"written to {args.out}: results.json, reliability.png, proportions.png, shift.png, spectrum.png")


if __name__ == "__main__":
    main()
