"""Batches as loaders yield them: pairs, longer tuples, mappings, and anything through to_batch."""

import collections

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bridge import Laplace
from tests.bridge.dense import fit, silent

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3


class Two(nn.Module):
    """A model of two inputs, positional or by keyword."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.Linear(4, 3), nn.Linear(2, 3)

    def forward(self, a, b):
        return self.left(a) + torch.tanh(self.right(b))


class Encoding(collections.UserDict):
    """As a tokenizer's BatchEncoding: a mapping that is no dict."""


A, B = X, X[:, :2] * 2


def expected():
    model = Two()

    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x[:, :4], x[:, 4:])

    return fit(Joined(), torch.cat([A, B], 1), Y)(torch.cat([A, B], 1))


FORMS = {
    "longer tuples": ([(A, B, Y)], (A, B), {}),
    "lists in pairs": ([([A, B], Y)], (A, B), {}),
    "a loader of tuples": (DataLoader(TensorDataset(A, B, Y), batch_size=5), (A, B), {}),
    "keywords and labels": ([{"a": A, "b": B, "labels": Y}], {"a": A, "b": B}, {}),
    "an encoding": ([Encoding(a=A, b=B, labels=Y)], Encoding(a=A, b=B), {}),
    "input and target": ([{"input": {"a": A, "b": B}, "target": Y}], {"a": A, "b": B}, {}),
    "numpy": ([(A.numpy(), B.numpy(), Y.numpy())], (A, B), {}),
    "anything": (
        [(1, {"left": A, "right": B}, Y)],
        (A, B),
        {"to_batch": lambda g: ((g[1]["left"], g[1]["right"]), g[2])},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_posterior(form):
    loader, inputs, options = FORMS[form]
    la = Laplace(Two(), hessian_structure="full", progress=False).fit(loader, **options)
    torch.testing.assert_close(la(inputs), expected(), rtol=1e-4, atol=1e-5)
    grid = {"val_loader": loader, "grid": [0.1, 1.0, 10.0]}
    tuned = silent(lambda: la.optimize_prior_precision("gridsearch", **grid, **options))
    assert np.isfinite(tuned.losses).all()


@pytest.mark.filterwarnings("ignore:os.fork")  # JAX's, of threads that a forked worker does not use
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_worker_processes_show_the_same_data(context):
    loader = DataLoader(TensorDataset(X, Y), batch_size=5, num_workers=2, multiprocessing_context=context)
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    la = Laplace(model, hessian_structure="full", progress=False).fit(loader)
    torch.testing.assert_close(la(X), fit(model, X, Y)(X), rtol=1e-4, atol=1e-6)
