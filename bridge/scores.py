"""Scores of held-out predictions: the core's by name, and what users bring for torch tensors."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import torch

from bridge.fitted_model import FittedModel
from bridge.search import Loss
from bridge.tensors import to_torch
from jax_core.predictive import GaussianOutputs
from jax_core.tuning import objective_by_name

Score = Callable[[Any, jax.Array], float]


def score_of(loss: Loss, fit: FittedModel, sigma_noise: Any) -> Score:
    """From predictions in the core's shape and targets to one number, smaller is better.

    Args:
        loss: A name, a torchmetrics metric, or a function of torch tensors in the model's shape.
        fit: What is predicted by.
        sigma_noise: Of a regression.

    Raises:
        TypeError: If it is none of these.
    """
    if isinstance(loss, str):
        noise = sigma_noise if isinstance(sigma_noise, float | int) else sigma_noise.reshape(-1)  # one per output
        known: Any = loss
        named = objective_by_name(known, fit.loss.likelihood, sigma_noise=noise)
        return lambda predictions, target: float(named(predictions, target))
    if not callable(loss):
        raise TypeError(f"loss is a {type(loss).__name__}. Give a name, a torchmetrics metric or a function.")
    metric = isinstance(loss, torch.nn.Module) and hasattr(loss, "update") and hasattr(loss, "compute")
    takes = None if metric else _positional(loss)

    def score(predictions: Any, target: jax.Array) -> float:
        given = _as_tensors(fit, predictions)
        truth = to_torch(jnp.asarray(target))
        if truth.dtype is torch.int32:  # as JAX has them; torch's losses take indices in 64 bits
            truth = truth.long()
        if metric:
            return _of_metric(loss, given, truth)
        chosen = given if len(given) == 1 or takes is None or takes >= 3 else given[:1]
        return float(torch.as_tensor(loss(*chosen, truth)))

    return score


def _as_tensors(fit: FittedModel, predictions: Any) -> tuple[torch.Tensor, ...]:
    layout = fit.layout
    if not isinstance(predictions, GaussianOutputs):
        return (to_torch(layout.to_model(predictions)),)
    covariance = layout.covariance_to_model(predictions.covariance, 1, 2)
    return to_torch(layout.to_model(predictions.mean)), to_torch(covariance)


def _of_metric(metric: Any, given: tuple[torch.Tensor, ...], truth: torch.Tensor) -> float:
    metric.reset()
    takes = _positional(metric.update)
    metric.update(*(given if takes is not None and takes >= 3 else given[:1]), truth)
    return float(torch.as_tensor(metric.compute()).sum())


def _positional(function: Any) -> int | None:
    """How many arguments a function takes by place; ``None`` where that is not known or any number."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
