"""Ways from a trained network to probabilities, each as one function of the network and the data."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from models import fit_temperature
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bridge import Laplace

Predict = Callable[[Tensor], Tensor]
RANK = 100
TUTORIAL_DIGITS, TUTORIAL_PRIOR_PRECISION, TUTORIAL_SAMPLES = 128, 10_000.0, 30


@dataclass(frozen=True)
class Digits:
    """What a method may look at: digits for the curvature, how many they stand for, and digits held out."""

    curvature: TensorDataset
    total: int
    held_out: TensorDataset

    def loader(self, count: int | None = None, batch_size: int = 128) -> DataLoader[Any]:
        return DataLoader(TensorDataset(*(t[:count] for t in self.curvature.tensors)), batch_size=batch_size)

    @property
    def held_out_loader(self) -> DataLoader[Any]:
        return DataLoader(self.held_out, batch_size=250)


@dataclass
class Fits:
    """A `Laplace` for each method, around one module: with other weights in it, a fit keeps its programs."""

    model: nn.Module
    kept: dict[str, Laplace] = field(default_factory=dict)

    def laplace(self, row: str, **options: Any) -> Laplace:
        if row not in self.kept:
            self.kept[row] = Laplace(self.model, "classification", progress=False, **options)
        return self.kept[row]

    def fitted(self, row: str, digits: Digits, **options: Any) -> Laplace:
        la = self.laplace(row, **options)
        la.prior_precision, la.logit_temperature = 1.0, 1.0
        return la.fit(digits.loader(), num_total_samples=digits.total)


def network(fits: Fits, digits: Digits) -> Predict:
    return lambda x: fits.model(x).softmax(-1)


def temperature(fits: Fits, digits: Digits) -> Predict:
    images, labels = digits.held_out.tensors
    with torch.no_grad():
        scale = fit_temperature(torch.cat([fits.model(part) for part in images.split(250)]), labels)
    return lambda x: (fits.model(x) / scale).softmax(-1)


def tutorial(fits: Fits, digits: Digits) -> Predict:
    la = fits.laplace("tutorial", hessian_structure="lowrank", rank=RANK, method="lanczos")
    la.prior_precision = TUTORIAL_PRIOR_PRECISION
    la.fit(digits.loader(TUTORIAL_DIGITS, 32), num_total_samples=digits.total)
    return lambda x: la(x, link_approx="mc", n_samples=TUTORIAL_SAMPLES)


def held_out(fits: Fits, digits: Digits) -> Predict:
    la = fits.fitted("held out", digits)
    la.optimize_prior_precision(val_loader=digits.held_out_loader)
    return la


def alone(fits: Fits, digits: Digits) -> Predict:
    la = fits.laplace("held out")  # its posterior is the one of the row before
    la.prior_precision, la.logit_temperature = 1.0, 1.0
    if not la.is_fitted or la.moved_weights():
        la = fits.fitted("held out", digits)
    la.optimize_prior_precision()
    return la


def kron(fits: Fits, digits: Digits) -> Predict:
    la = fits.fitted("kron", digits, hessian_structure="kron")
    la.optimize_prior_precision(val_loader=digits.held_out_loader)
    return la


def last_layer(fits: Fits, digits: Digits) -> Predict:
    la = fits.fitted("last layer", digits, subset_of_weights="last_layer", hessian_structure="full")
    la.optimize_prior_precision(val_loader=digits.held_out_loader)
    return la


def laplace_torch(fits: Fits, digits: Digits) -> Predict:
    from laplace import Laplace as Peer  # optional: its row is left out without it

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        la = Peer(fits.model, "classification")  # its defaults: the last layer, Kronecker
        la.fit(digits.loader())
        la.optimize_prior_precision(
            method="gridsearch", pred_type="glm", link_approx="probit", val_loader=digits.held_out_loader
        )
    return lambda x: la(x, pred_type="glm", link_approx="probit")


def methods() -> dict[str, Callable[[Fits, Digits], Predict]]:
    """The rows of the table, in their order."""
    found = {
        "network": network,
        "temperature scaling": temperature,
        "Laplace, tutorial's settings": tutorial,
        "Laplace, held-out digits": held_out,
        "Laplace, no held-out digits": alone,
        "Laplace, last layer": last_layer,
        "Laplace, kron": kron,
        "laplace-torch, its defaults": laplace_torch,
    }
    if importlib.util.find_spec("laplace") is None:
        del found["laplace-torch, its defaults"]
    return found
