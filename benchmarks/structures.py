"""Which structure is near the exact posterior: predictive variances and the evidence's optimum, on four networks.

The exact posterior keeps every eigenpair of 256 digits. Over 100 test digits and 10 outputs: the median ratio
of predictive variances to the exact ones, and the correlation of their logarithms; and the prior precision that the
evidence prefers, over the exact posterior's. ``python benchmarks/structures.py mlp`` does one of them.
"""

import sys
from functools import partial

from common import alone, digits, main, print_table, trained, trained_cnn

CURVATURE, TEST, TRAIN = 256, 100, 50_000
STRUCTURES = {
    "kron_lowrank, rank 25": {"hessian_structure": "kron_lowrank", "rank": 25},
    "kron_lowrank (default: rank 100)": {"hessian_structure": "kron_lowrank"},
    "kron_lowrank, rank 300": {"hessian_structure": "kron_lowrank", "rank": 300},
    "lowrank, rank 100": {"hessian_structure": "lowrank"},
    "ekfac": {"hessian_structure": "ekfac"},
    "kron": {"hessian_structure": "kron"},
    "diag": {"hessian_structure": "diag"},
}
PRIORS = (1.0, 10.0, 100.0, 1000.0)


def mlp():
    from torch import nn

    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def transformer():
    import torch
    from torch import nn

    class Patches(nn.Module):
        """Sixteen patches of 7 x 7 as tokens."""

        def __init__(self):
            super().__init__()
            self.embed = nn.Conv2d(1, 32, 7, 7)
            self.place = nn.Parameter(0.02 * torch.randn(16, 32))
            self.layers = nn.Sequential(
                *(nn.TransformerEncoderLayer(32, 4, 64, 0.0, "gelu", batch_first=True) for _ in range(2))
            )
            self.head = nn.Linear(32, 10)

        def forward(self, x):
            return self.head(self.layers(self.embed(x).flatten(2).transpose(1, 2) + self.place).mean(1))

    return Patches()


def resnet():
    from torch import nn

    class Block(nn.Module):
        def __init__(self, inner, outer, stride):
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(inner, outer, 3, stride, 1, bias=False),
                nn.BatchNorm2d(outer),
                nn.ReLU(),
                nn.Conv2d(outer, outer, 3, 1, 1, bias=False),
                nn.BatchNorm2d(outer),
            )
            same = inner == outer and stride == 1
            self.skip = nn.Identity() if same else nn.Conv2d(inner, outer, 1, stride, bias=False)

        def forward(self, x):
            return (self.body(x) + self.skip(x)).relu()

    start = [nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    blocks = [Block(16, 16, 2), Block(16, 32, 2), Block(32, 64, 2)]
    return nn.Sequential(*start, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


NETWORKS = {"cnn": partial(trained_cnn, 2_200)} | {
    make.__name__: partial(trained, make, 1_000, count=TRAIN) for make in (mlp, transformer, resnet)
}


def measure(name):
    import numpy as np
    import torch
    from scipy.optimize import minimize_scalar
    from torch.utils.data import DataLoader, TensorDataset

    from bridge import Laplace

    model = NETWORKS[name]()
    loader = DataLoader(TensorDataset(*digits(count=CURVATURE)), batch_size=64)
    images = digits(train=False, count=TEST)[0]

    def fitted(**how):
        la = Laplace(model, "classification", progress=False, **how)
        return la.fit(loader, num_total_samples=TRAIN)

    def variances(la, prior):
        la.prior_precision = prior
        blocks = [la.predictive_distribution(part)[1] for part in images.split(25)]
        return torch.diagonal(torch.cat(blocks), dim1=1, dim2=2).reshape(-1).double().numpy()

    def optimum(la):
        """The logarithm of the precision with the largest evidence."""
        return minimize_scalar(
            lambda log: -float(la.log_marginal_likelihood(torch.tensor(float(np.exp(log))))),
            bounds=(-7, 12),
            method="bounded",
        ).x

    exact = fitted(hessian_structure="lowrank", method="gram", rank=CURVATURE * 10)
    wanted, best = {prior: variances(exact, prior) for prior in PRIORS}, optimum(exact)
    figures = {"parameters": exact.n_params, "exact/optimum": float(np.exp(best))}
    for structure, how in STRUCTURES.items():
        la = fitted(**how)
        for prior in PRIORS:
            found = variances(la, prior)
            figures[f"{structure}/{prior}"] = float(np.median(found / wanted[prior]))
            logs = np.log(found), np.log(wanted[prior])
            figures[f"{structure}/{prior}/corr"] = float(np.corrcoef(*logs)[0, 1])
        figures[f"{structure}/optimum"] = float(np.exp(optimum(la) - best))
    return figures


def table():
    for name in sys.argv[1:] or NETWORKS:
        found = alone(__file__, "measure", name)
        print(f"\n{name}: {found['parameters']:,.0f} parameters, evidence largest at {found['exact/optimum']:.3g}\n")
        rows = [
            [
                structure,
                *(f"{found[f'{structure}/{p}']:.2f} ({found[f'{structure}/{p}/corr']:.3f})" for p in PRIORS),
                f"{found[f'{structure}/optimum']:.2f}",
            ]
            for structure in STRUCTURES
        ]
        print_table(["", *(f"prior {prior:g}" for prior in PRIORS), "its optimum over the exact one"], rows)


WORKERS = {"measure": measure}

if __name__ == "__main__":
    main(WORKERS, table)
