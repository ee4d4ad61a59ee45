"""The table of bad inputs: models, likelihoods, options, loaders, targets, and calls on a fitted Laplace."""

from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from bridge import TraceError, load
from jax_core import Custom

N = 10
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N) % 3
R = X[:, :3].clone()
L = (R > 0).float()
NAN = X.clone()
NAN[3, 1] = float("nan")
GOOD: dict[str, Any] = {"classification": Y, "regression": R, "multilabel": L}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def having(act):
    """A network changed by a function."""
    model = network()
    act(model)
    return model


def wrapped(forward):
    """A network with another forward."""

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, x):
            return forward(self.inner(x))

    return Wrapped()


@dataclass(frozen=True)
class Row:
    """What is handed over, and what must come back."""

    error: type[Exception] | tuple[type[Exception], ...]
    message: str
    model: Any = network
    likelihood: Any = "classification"
    data: Any = None
    options: dict[str, Any] = field(default_factory=dict)
    fit: dict[str, Any] = field(default_factory=dict)
    after: Any = None
    """What is done with a fitted Laplace instead, whose error is meant."""


class Casting(nn.Linear):
    """Of inputs that it casts itself."""

    def __init__(self):
        super().__init__(3, 3)

    def forward(self, x):
        return super().forward(x.bfloat16())


def pairs(x, y):
    return [(x, y)]


def nan_weight(model):
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")


_LOBPCG = {"rank": 100, "method": "lobpcg", "hessian_structure": "lowrank"}

ROWS = {
    # models
    "no module": Row(TypeError, "model is a function.*torch.nn.Module", model=lambda: lambda x: x),
    "a class": Row(TypeError, "model is a type", model=lambda: nn.Linear),
    "nothing to train": Row(ValueError, "requires_grad=True", model=lambda: network().requires_grad_(False)),
    "no parameters": Row(ValueError, "requires_grad=True", model=nn.Tanh),
    "lazy": Row(ValueError, "Run the model once on a batch", model=lambda: nn.LazyLinear(3)),
    "weights that diverged": Row(TraceError, r"0\.weight.*load sound weights", model=lambda: having(nan_weight)),
    "two outputs": Row((TypeError, TraceError), "one tensor", model=lambda: wrapped(lambda z: (z, z))),
    "no output": Row((TypeError, TraceError), "one tensor", model=lambda: wrapped(lambda z: None)),
    "no classes": Row(ValueError, "without an axis of classes.*multilabel", model=lambda: wrapped(lambda z: z[:, 0])),
    "a mean over the batch": Row(TraceError, "see one another", model=lambda: wrapped(lambda z: z - z.mean(0))),
    "one number for all": Row(TraceError, "Axis 0", model=lambda: wrapped(lambda z: z.sum())),
    "batch at the end": Row(TraceError, "Axis 0.*batch_first", model=lambda: wrapped(lambda z: z.T)),
    "a data branch": Row(
        TraceError, "branches on values.*torch.where", model=lambda: wrapped(lambda z: z if z.sum() > 0 else -z)
    ),
    "a batch size in numbers": Row(
        TraceError, "10 samples.*traced on 2", model=lambda: wrapped(lambda z: z.view(10, 3))
    ),
    "casts to 16 bits": Row(
        TraceError,
        "worked on in float32.*casts to 16 bits",
        model=lambda: having(lambda m: m.append(Casting()).bfloat16()),
        data=pairs(X.bfloat16(), Y),
    ),
    "scripted": Row(TraceError, "scripted.*original module", model=lambda: torch.jit.script(network())),
    "float64 on float32 data": Row(TraceError, "fails on the example.*same dtype", model=lambda: network().double()),
    # likelihoods
    "unknown name": Row(ValueError, "'clasification'.*'classification'", likelihood="clasification"),
    "huber": Row(ValueError, "HuberLoss.*nn.MSELoss", likelihood=nn.HuberLoss()),
    "gaussian nll": Row(ValueError, "GaussianNLLLoss.*sigma_noise", likelihood=nn.GaussianNLLLoss()),
    "a number": Row(TypeError, "A loss is a name", likelihood=3),
    "poisson of rates": Row(ValueError, "log_input=True", likelihood=nn.PoissonNLLLoss(log_input=False)),
    "bce with weights": Row(ValueError, "pos_weight", likelihood=nn.BCEWithLogitsLoss(weight=torch.ones(3))),
    "a loss in torch": Row(
        TypeError,
        "fails on batch 0.*jax.numpy.*nn.CrossEntropyLoss",
        likelihood=Custom(lambda f, t: torch.exp(f).sum()),
    ),
    "a loss per output": Row(
        TypeError, r"gives \(3,\).*one number", likelihood=Custom(lambda f, t: (f - t) ** 2), data=pairs(X, R)
    ),
    "a pinball loss": Row(
        ValueError,
        "second derivative.*posterior the prior",
        likelihood=Custom(lambda f, t: jnp.maximum(0.9 * (t - f), 0.1 * (f - t)).sum()),
        data=pairs(X, R),
    ),
    # options
    "misspelt option": Row(TypeError, "rnak", options={"rnak": 99}),
    "structure": Row(ValueError, "hessian_structure='krno'.*'lowrank'", options={"hessian_structure": "krno"}),
    "method": Row(ValueError, "method='lancsoz'.*'lanczos'", options={"method": "lancsoz"}),
    "link": Row(ValueError, "link_approx='probbit'.*'probit'", options={"link_approx": "probbit"}),
    "cache": Row(ValueError, "cache='disk'.*'memory'", options={"cache": "disk"}),
    "tracer": Row(ValueError, "tracer='fx'.*'export'", options={"tracer": "fx"}),
    "rank zero": Row(ValueError, "rank=0.*whole number", options={"rank": 0}),
    "rank a fraction": Row(ValueError, "rank=2.5.*whole number", options={"rank": 2.5}),
    "rank for lobpcg": Row(ValueError, "rank=43 is more than a fifth of 43", options=_LOBPCG),
    "method of a low rank": Row(ValueError, "method='gram' does not go with .*'diag'", options={"method": "gram"}),
    "passes": Row(ValueError, "passes=0", options={"passes": 0}),
    "samples": Row(ValueError, "n_samples=-1", options={"n_samples": -1}),
    "cache bytes": Row(ValueError, "cache_bytes=0", options={"cache_bytes": 0}),
    "precision below zero": Row(ValueError, "prior_precision=-1.0.*positive", options={"prior_precision": -1.0}),
    "precision of nothing": Row(ValueError, "prior_precision=0", options={"prior_precision": 0}),
    "precision in words": Row(ValueError, "prior_precision='1.5'.*positive number", options={"prior_precision": "1.5"}),
    "precision nan": Row(ValueError, "prior_precision=nan", options={"prior_precision": float("nan")}),
    "precision of 17": Row(
        ValueError, r"\(17,\).*4 tensors.*43.*model.parameters\(\)", options={"prior_precision": torch.ones(17)}
    ),
    "precision in a matrix": Row(ValueError, r"\(1, 1\)", options={"prior_precision": torch.ones(1, 1)}),
    "precision of none": Row(ValueError, "prior_precision=None", options={"prior_precision": None}),
    "precision with a zero": Row(ValueError, r"positive", options={"prior_precision": [1.0, 0.0, 1.0, 1.0]}),
    "precision, ragged": Row(ValueError, "prior_precision", options={"prior_precision": [[1.0], [1.0, 2.0]]}),
    "precision by a wrong name": Row(ValueError, "0.weights", options={"prior_precision": {"0.weights": 1.0}}),
    "precision true": Row(ValueError, "prior_precision=True", options={"prior_precision": True}),
    "mean in words": Row(ValueError, "prior_mean='72'", options={"prior_mean": "72"}),
    "mean of too few": Row(ValueError, r"prior_mean of shape \(40,\)", options={"prior_mean": np.ones(40)}),
    "mean infinite": Row(ValueError, "prior_mean=inf", options={"prior_mean": float("inf")}),
    "noise below zero": Row(ValueError, "sigma_noise=-1.0", likelihood="regression", options={"sigma_noise": -1.0}),
    "noise of labels": Row(ValueError, "sigma_noise=1.2.*belongs to regression", options={"sigma_noise": 1.2}),
    "noise of two": Row(
        ValueError,
        r"sigma_noise of shape \(2,\).*3 outputs",
        likelihood="regression",
        options={"sigma_noise": [1.0, 2.0]},
    ),
    "temperature zero": Row(ValueError, "temperature=0.0", options={"temperature": 0.0}),
    "two temperatures": Row(ValueError, "temperature of shape", options={"temperature": [1.0, 2.0]}),
    # loaders and batches
    "empty": Row(ValueError, "empty.*at least one sample", data=[]),
    "no loader": Row(TypeError, "loader is a int.*DataLoader", data=3),
    "no pair": Row(TypeError, "pair.*to_batch", data=[X]),
    "a tuple of one": Row(TypeError, "tuple of 1.*to_batch", data=[(X,)]),
    "mapping without a target": Row(TypeError, "none of them is the target.*to_batch", data=[{"image": X, "kind": Y}]),
    "two targets": Row(TypeError, "could be the target", data=[{"x": X, "labels": Y, "target": Y}]),
    "words": Row(TypeError, "'digits'.*tensors or numpy", data=[("digits", Y)]),
    "none for input": Row(TypeError, "None.*tensors or numpy", data=[(None, Y)]),
    "shared input": Row(TypeError, "no batch axis.*buffer", data=[({"x": X, "edges": torch.zeros(2, 5)}, Y)]),
    "a number for input": Row(TypeError, "no batch axis", data=[(3.0, Y)]),
    "nan": Row(ValueError, "Batch 0.*NaN.*Remove", data=pairs(NAN, Y)),
    "nan later": Row(ValueError, "Batch 1.*NaN", data=[(X, Y), (NAN, Y)]),
    "another width": Row(ValueError, "Batch 1.*shape.*Resize", data=[(X, Y), (torch.ones(2, 5), Y[:2])]),
    "wrong to_batch": Row(TypeError, "Tensor", fit={"to_batch": lambda batch: batch[0]}),
    "total below one": Row(ValueError, "num_total_samples=0", fit={"num_total_samples": 0}),
    # targets
    "class too large": Row(ValueError, "class 3.*0 to 2.*Count classes", data=pairs(X, Y + 1)),
    "class below zero": Row(ValueError, "class -1", data=pairs(X, Y - 1)),
    "ignored without saying": Row(ValueError, "class -100.*ignore_index", data=pairs(X, torch.full((N,), -100))),
    "floats for classes": Row(TypeError, r"target\.long\(\)", data=pairs(X, Y.float())),
    "a column of classes": Row(ValueError, r"squeeze\(-1\)", data=pairs(X, Y[:, None])),
    "indicators of classes": Row(ValueError, r"target\.argmax\(-1\)", data=pairs(X, torch.eye(3, dtype=int)[Y])),
    "too many classes a sample": Row(ValueError, "one index for each place", data=pairs(X, torch.stack([Y, Y], 1))),
    "no target": Row(TypeError, "no target", data=[(X, None)]),
    "fewer targets": Row(ValueError, "10 inputs and targets of shape", data=pairs(X, Y[:5])),
    "float64 inputs": Row(TraceError, r"inputs are float64.*x\.float\(\)", data=pairs(X.double(), Y)),
    "named for no parameter": Row(
        TraceError, "no parameters named.*'image'.*to_batch=", data=[{"image": X, "index": Y, "label": Y}]
    ),
    "two-part target": Row(TypeError, r"Custom\(loss\)", data=[(X, (Y, Y))]),
    "words for targets": Row(TypeError, "targets of type <U1.*class indices", data=[(X, np.array(["a"] * N))]),
    "regression nan": Row(
        ValueError, "NaN or infinite targets", likelihood="regression", data=pairs(X, R * float("nan"))
    ),
    "regression width": Row(ValueError, "one target value per output", likelihood="regression", data=pairs(X, X)),
    "labels above one": Row(
        ValueError, "zeros and ones.*'classification'", likelihood="multilabel", data=pairs(X, L * 2)
    ),
    "counts below zero": Row(ValueError, "Counts", likelihood=nn.PoissonNLLLoss(), data=pairs(X, -torch.ones(N, 3))),
    "classes in the other place": Row(
        ValueError,
        r"fit classes on axis 1: use likelihood=nn\.CrossEntropyLoss\(\) for that\.$",
        model=lambda: nn.Conv1d(4, 3, 1),
        data=pairs(torch.randn(N, 4, 5), torch.zeros(N, 5, dtype=torch.long)),
    ),
    "classes in torch's place": Row(
        ValueError,
        "fit classes on the last axis.*'classification'",
        model=lambda: nn.Linear(4, 3),
        likelihood=nn.CrossEntropyLoss(),
        data=pairs(torch.randn(N, 5, 4), torch.zeros(N, 5, dtype=torch.long)),
    ),
    "a loss that bends down": Row(
        ValueError, "not convex", likelihood=Custom(lambda f, t: -(f**2).sum()), data=pairs(X, R)
    ),
    # predictions and tuning of a fitted one
    "other width": Row(ValueError, "shape.*traced for", after=lambda la: la(torch.ones(2, 5))),
    "nan to predict": Row(ValueError, "NaN", after=lambda la: la(NAN)),
    "words to predict": Row(TypeError, "'digits'", after=lambda la: la("digits")),
    "integers to predict": Row(TypeError, "dtype int", after=lambda la: la(X.long())),
    "two inputs": Row(ValueError, "1 input tensors, 2", after=lambda la: la((X, X))),
    "link at the call": Row(ValueError, "link_approx='softmax'", after=lambda la: la(X, link_approx="softmax")),
    "pred_type": Row(ValueError, "pred_type='map'", after=lambda la: la(X, pred_type="map")),
    "samples at the call": Row(ValueError, "n_samples=0", after=lambda la: la(X, n_samples=0)),
    "misspelt keyword": Row(TypeError, "diagonal", after=lambda la: la(X, diagonal=True)),
    "loading into a model": Row(TypeError, r"not a Sequential: load\(path, Lap", after=lambda la: load("a", la.model)),
    "tuning without data": Row(ValueError, "val_loader", after=lambda la: la.optimize_prior_precision("gridsearch")),
    "tuning by another name": Row(
        ValueError, "pred_type='cv'.*'gridsearch'", after=lambda la: la.optimize_prior_precision("cv")
    ),
    "an empty held-out set": Row(
        ValueError, "empty", after=lambda la: la.optimize_prior_precision("gridsearch", val_loader=[])
    ),
    "held-out classes": Row(
        ValueError, "class 3", after=lambda la: la.optimize_prior_precision("gridsearch", val_loader=pairs(X, Y + 1))
    ),
    "a grid with a zero": Row(
        ValueError,
        "positive",
        after=lambda la: la.optimize_prior_precision("gridsearch", val_loader=pairs(X, Y), grid=[0.0, 1.0]),
    ),
    "a precision set later": Row(ValueError, "prior_precision=-2", after=lambda la: setattr(la, "prior_precision", -2)),
    "a noise set later": Row(ValueError, "belongs to regression", after=lambda la: setattr(la, "sigma_noise", 0.5)),
    "a temperature set later": Row(ValueError, "temperature=0", after=lambda la: setattr(la, "temperature", 0)),
    "a link set later": Row(ValueError, "link_approx='x'", after=lambda la: setattr(la, "link_approx", "x")),
    "samples set later": Row(ValueError, "n_samples=0", after=lambda la: setattr(la, "n_samples", 0)),
}
