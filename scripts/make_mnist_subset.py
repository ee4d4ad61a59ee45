"""Make the digits that the repository carries, from torchvision's full MNIST.

python scripts/make_mnist_subset.py --data-root DIR   # DIR holds MNIST/raw, or receives the download

Every class keeps its share of the full set; a fixed seed picks and shuffles, so the same file comes out each time.
"""

import argparse
from pathlib import Path

import numpy as np
from torchvision.datasets import MNIST

OUT = Path(__file__).resolve().parents[1] / "examples" / "data" / "mnist_subset.npz"


def stratified_subset(labels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of `size` samples, in random order, whose class counts are proportional to the full ones."""
    counts = np.bincount(labels)
    shares = size * counts / counts.sum()
    quota = np.floor(shares).astype(int)
    quota[np.argsort(quota - shares)[: size - quota.sum()]] += 1  # largest remainders first
    picked = [rng.permutation(np.flatnonzero(labels == c))[:n] for c, n in enumerate(quota)]
    return rng.permutation(np.concatenate(picked))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True, help="directory of torchvision's MNIST")
    parser.add_argument("--train", type=int, default=10_000, help="training digits")
    parser.add_argument("--test", type=int, default=2_000, help="test digits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()

    rng = np.random.default_rng(args.seed)
    arrays: dict[str, np.ndarray] = {}
    for name, size in (("train", args.train), ("test", args.test)):
        full = MNIST(args.data_root, train=name == "train", download=True)
        index = stratified_subset(full.targets.numpy(), size, rng)
        arrays[f"{name}_images"] = full.data.numpy()[index]  # (N, 28, 28) uint8
        arrays[f"{name}_labels"] = full.targets.numpy()[index].astype(np.uint8)

    args.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(args.out, **arrays)
    print(f"{args.out.name}: {args.train} + {args.test} digits, {args.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
