"""Training with the evidence: weights by the data, prior precisions and noise by the marginal likelihood."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Adam, Optimizer
from tqdm.auto import tqdm

from bridge.arguments import as_taken
from bridge.dataloader import BatchReader
from bridge.independence import call
from bridge.laplace import Laplace
from bridge.options import one_of, positive, spelled, whole
from bridge.outputs import single_output
from bridge.parameter_order import ParameterOrder
from bridge.placement import device_of, on_device
from bridge.search import PriorStructure
from jax_core.fit import Structure

TrainedLikelihood = Literal["classification", "regression"]


@spelled
def marglik_training(
    model: nn.Module,
    train_loader: Iterable[Any],
    likelihood: TrainedLikelihood = "classification",
    hessian_structure: Structure = "kron",
    backend: Any = None,
    optimizer_cls: type[Optimizer] = Adam,
    optimizer_kwargs: Mapping[str, Any] | None = None,
    scheduler_cls: Any = None,
    scheduler_kwargs: Mapping[str, Any] | None = None,
    n_epochs: int = 300,
    lr_hyp: float = 1e-1,
    prior_structure: PriorStructure = "layerwise",
    n_epochs_burnin: int = 0,
    n_hypersteps: int = 10,
    marglik_frequency: int = 1,
    prior_prec_init: float = 1.0,
    sigma_noise_init: float = 1.0,
    temperature: float = 1.0,
    fix_sigma_noise: bool = False,
    progress_bar: bool = False,
    enable_backprop: bool = False,
    dict_key_x: str | None = None,
    dict_key_y: str | None = None,
) -> tuple[Laplace, nn.Module, list[float], list[float]]:
    r"""Train a model on its penalised loss, and its prior precisions and noise on the evidence, in turns.

    Algorithm 1 of Immer et al. (2021, arXiv:2104.04975): an epoch of training with the penalty
    $\tfrac12 \theta^\top D \theta$, then some steps up the log marginal likelihood of a Laplace approximation at the
    weights reached. The best weights and hyperparameters by the evidence are kept. The network is traced, and its
    curvature compiled, once for all epochs.

    Args:
        model: Returns logits or means; trained in place.
        train_loader: Batches as in :meth:`bridge.Laplace.fit`; it may shuffle.
        likelihood: ``"classification"`` or ``"regression"``.
        hessian_structure: Of :class:`bridge.Laplace`.
        backend: Of :class:`bridge.Laplace`.
        optimizer_cls: Of the weights.
        optimizer_kwargs: For that; a weight decay in them is set to zero, since the prior is one.
        scheduler_cls: A schedule for its learning rate, if any; it steps after each batch.
        scheduler_kwargs: For that.
        n_epochs: Epochs.
        lr_hyp: Learning rate of the hyperparameters, by Adam in their logarithms.
        prior_structure: One precision, ``"scalar"``; per tensor, ``"layerwise"``; or per weight, ``"diag"``.
        n_epochs_burnin: Epochs before the hyperparameters move.
        n_hypersteps: Steps of theirs each time.
        marglik_frequency: Every so many epochs they move.
        prior_prec_init: Where the precision begins.
        sigma_noise_init: Where the noise of a regression begins.
        temperature: Of the likelihood.
        fix_sigma_noise: Leave the noise there.
        progress_bar: Show one.
        enable_backprop: Of the Laplace returned.
        dict_key_x: Of :class:`bridge.Laplace`.
        dict_key_y: Of :class:`bridge.Laplace`.

    Returns:
        The Laplace approximation at the best weights, the model with them, the negative log marginal likelihoods of
        all steps, and the mean training loss of each epoch.

    Raises:
        ValueError: For options out of their range, before training.
        TraceError: If the model cannot be traced, after the first epoch.
    """
    one_of("likelihood", likelihood, TrainedLikelihood)
    one_of("prior_structure", prior_structure, PriorStructure)
    counts = (("n_epochs", n_epochs), ("n_hypersteps", n_hypersteps), ("marglik_frequency", marglik_frequency))
    for name, count in counts:
        whole(name, count)
    given = (("lr_hyp", lr_hyp), ("prior_prec_init", prior_prec_init), ("sigma_noise_init", sigma_noise_init))
    for name, value in given:
        positive(name, value)
    moving = likelihood == "regression" and not fix_sigma_noise
    hyper = _Hyper.start(model, prior_structure, temperature * prior_prec_init, sigma_noise_init, moving=moving)
    la = Laplace(
        model,
        likelihood,
        hessian_structure=hessian_structure,
        sigma_noise=sigma_noise_init if likelihood == "regression" else 1.0,
        prior_precision=hyper.prior.detach(),
        temperature=temperature,
        backend=backend,
        enable_backprop=enable_backprop,
        dict_key_x=dict_key_x,
        dict_key_y=dict_key_y,
        progress=False,
    )
    optimizer = optimizer_cls(model.parameters(), **_without_decay(optimizer_kwargs))
    scheduler = None if scheduler_cls is None else scheduler_cls(optimizer, **dict(scheduler_kwargs or {}))
    climber = Adam(hyper.tensors, lr=lr_hyp)
    reader = la.reading.reader(None)
    how = (optimizer, scheduler, reader, temperature, _count(train_loader, reader))
    training = _Training(model, likelihood == "regression", *how)
    losses: list[float] = []
    margliks: list[float] = []
    best: tuple[float, Any, _Hyper] | None = None
    for epoch in tqdm(range(1, n_epochs + 1), "Training", disable=not progress_bar, leave=False):
        losses.append(training.epoch(train_loader, hyper))
        if epoch % marglik_frequency or epoch < n_epochs_burnin:
            continue
        la.prior_precision = hyper.prior.detach()
        la.fit(train_loader)
        evaluated = hyper
        for _ in range(n_hypersteps):
            evaluated = copy.deepcopy(hyper)
            climber.zero_grad()
            negative = -la.log_marginal_likelihood(hyper.prior, hyper.noise if moving else None)
            negative.backward()
            climber.step()
            margliks.append(float(negative))
        if best is None or margliks[-1] < best[0]:
            best = margliks[-1], copy.deepcopy(model.state_dict()), evaluated
    if best is not None:
        model.load_state_dict(best[1])
        hyper = best[2]
    la.prior_precision = hyper.prior.detach()
    if moving:
        la.sigma_noise = hyper.noise.detach()
    return la.fit(train_loader), model.eval(), margliks, losses


@dataclass(frozen=True)
class _Hyper:
    """Logarithms of what the evidence moves."""

    log_prior: torch.Tensor
    log_noise: torch.Tensor
    moving: bool

    @classmethod
    def start(
        cls, model: nn.Module, structure: PriorStructure, precision: float, noise: float, *, moving: bool
    ) -> _Hyper:
        order = ParameterOrder.of(model)
        shape = {"scalar": (), "layerwise": (len(order.names),), "diag": (order.size,)}[structure]
        log_prior = torch.full(shape, math.log(precision)).requires_grad_()
        return cls(log_prior, torch.tensor(math.log(noise)).requires_grad_(moving), moving)

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [self.log_prior, self.log_noise] if self.moving else [self.log_prior]

    @property
    def prior(self) -> torch.Tensor:
        return self.log_prior.exp()

    @property
    def noise(self) -> torch.Tensor:
        return self.log_noise.exp()


@dataclass(frozen=True)
class _Training:
    """An epoch of steps on the penalised loss."""

    model: nn.Module
    regression: bool
    optimizer: Optimizer
    scheduler: Any
    reader: BatchReader
    temperature: float
    total: int

    def epoch(self, loader: Iterable[Any], hyper: _Hyper) -> float:
        """The mean loss of an epoch, which it trains."""
        self.model.train()
        with torch.no_grad():
            noise = float(hyper.noise)
            weights = [p for p in self.model.parameters() if p.requires_grad]
            precisions = _per_tensor(hyper.prior, weights)
        factor = self.temperature / (2 * noise**2) if self.regression else self.temperature
        summed, seen = 0.0, 0
        for inputs, target in self._batches(loader):
            self.optimizer.zero_grad()
            outputs = single_output(call(self.model, inputs))
            measure = nn.functional.mse_loss if self.regression else nn.functional.cross_entropy
            pairs = zip(precisions, weights, strict=True)
            penalty = 0.5 * sum(((d.to(w) * w**2).sum() for d, w in pairs), torch.zeros((), device=outputs.device))
            loss = measure(outputs, target) + penalty / self.total / factor
            loss.backward()
            self.optimizer.step()
            summed, seen = summed + float(loss.detach()) * len(target), seen + len(target)
            if self.scheduler is not None:
                self.scheduler.step()
        return summed / max(seen, 1)

    def _batches(self, loader: Iterable[Any]) -> Iterator[tuple[Any, torch.Tensor]]:
        device = device_of(self.model)
        for given in loader:
            batch = self.reader(given)
            target = torch.as_tensor(batch.target).to(device)
            yield on_device(self.model, as_taken(self.model, batch.input)), target


def _per_tensor(prior: torch.Tensor, weights: list[nn.Parameter]) -> list[torch.Tensor]:
    if prior.ndim == 0:
        return [prior] * len(weights)
    if prior.numel() == len(weights):
        return list(prior)
    parts = prior.split([w.numel() for w in weights])
    return [part.reshape(w.shape) for part, w in zip(parts, weights, strict=True)]


def _count(loader: Iterable[Any], reader: BatchReader) -> int:
    """Samples of an epoch."""
    if isinstance(loader, Iterator):
        raise TypeError("train_loader is an iterator, which ends after one epoch. Give a DataLoader.")
    try:
        return len(loader.dataset)  # type: ignore[attr-defined]
    except (AttributeError, TypeError):
        return sum(len(reader(given).target) for given in loader)


def _without_decay(options: Mapping[str, Any] | None) -> dict[str, Any]:
    given = dict(options or {})
    if given.get("weight_decay"):
        warnings.warn(
            "weight_decay is set to zero: the prior precision is the weight decay, and the evidence moves it.",
            stacklevel=4,
        )
        given["weight_decay"] = 0.0
    return given
