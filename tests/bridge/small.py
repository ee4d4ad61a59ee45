"""A small network in float64 and its posteriors, each fitted once, for tests that cross structures and subsets."""

import copy
import functools

import jax
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bridge import Laplace
from jax_core.fit import PER_LAYER
from tests.bridge import dense

STRUCTURES = ("full", "diag", "lowrank", "kron", "ekfac", "kron_lowrank")
INDICES = (41, 3, 0, 27, 12)  # unsorted, from every tensor but the first bias
SUBSETS = ("all", "last_layer", ("0",), "subnetwork")
CASES = [(s, sub) for s in STRUCTURES for sub in SUBSETS if not (sub == "subnetwork" and s in PER_LAYER)]
COVERED = {"all": range(43), "last_layer": range(25, 43), ("0",): range(25), "subnetwork": INDICES}
PRIOR, NOISE = 2.0, 0.7


def network():
    """The same whatever torch's default dtype."""
    torch.manual_seed(0)
    kind = {"dtype": torch.float32}
    return nn.Sequential(nn.Linear(4, 5, **kind), nn.Tanh(), nn.Linear(5, 3, **kind)).double()


def data(likelihood="classification", n=30):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    values = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return x, {"classification": values.argmax(1), "regression": values, "multilabel": (values > 0).double()}[
        likelihood
    ]


def loader(likelihood="classification", part=slice(None), batch=8):
    x, y = data(likelihood)
    return DataLoader(TensorDataset(x[part], y[part]), batch_size=batch)


def make(structure="full", subset="all", likelihood="classification", **options):
    """Not fitted; a low rank as high as it goes, whose rows drop nothing."""
    more = {"subnetwork_indices": torch.tensor(INDICES)} if subset == "subnetwork" else {}
    more |= {"sigma_noise": NOISE} if likelihood == "regression" else {}
    how = {"rank": len(COVERED.get(subset, INDICES)), "prior_precision": PRIOR, "progress": False} | more | options
    la = Laplace(network(), likelihood, subset, structure, **how)
    la.options = type(la.options)(**{**vars(la.options), "tolerance": 0.0})
    return la


@functools.cache
def fitted(structure="full", subset="all", likelihood="classification", **options):
    """Shared: a test that sets anything takes a copy."""
    with jax.enable_x64(True):
        return make(structure, subset, likelihood, **options).fit(loader(likelihood))


def own(la):
    return copy.deepcopy(la)


@functools.cache
def dense_ggn(likelihood="classification"):
    x, y = data(likelihood)
    losses = {"classification": nn.CrossEntropyLoss, "regression": nn.MSELoss, "multilabel": nn.BCEWithLogitsLoss}
    loss, half = losses[likelihood](reduction="sum"), 0.5 if likelihood == "regression" else 1.0
    return dense.ggn(network(), x, lambda z, i: half * loss(z, y[i : i + 1]))


def jacobians(x):
    model = network()
    return torch.stack([dense.jacobian(model, x[i : i + 1]) for i in range(len(x))])


def matrix(precision):
    """Of a posterior precision, whatever it is kept as."""
    if not isinstance(precision, torch.Tensor):
        return precision.to_matrix()
    return precision if precision.ndim == 2 else torch.diag(precision)
