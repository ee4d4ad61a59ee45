"""Weights to be uncertain about, one by one: places for ``Laplace(..., "subnetwork", subnetwork_indices=)``.

All of them count in the flattened ``model.parameters()`` with ``requires_grad=True`` and come back sorted, as a tensor.
A posterior over a well-chosen few weights keeps most of the predictive uncertainty (Daxberger et al., 2021,
arXiv:2010.14689).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from bridge.laplace import Laplace
from bridge.options import whole
from bridge.parameter_order import ParameterOrder
from bridge.subset import Subset, WeightSubset
from bridge.tracing.checks import unwrap


def largest_magnitude(model: nn.Module, count: int) -> torch.Tensor:
    """The ``count`` weights of the largest absolute value.

    Example:
        >>> indices = bridge.subnetworks.largest_magnitude(model, 10)
        >>> small = Laplace(model, "classification", "subnetwork", "full", subnetwork_indices=indices)
        >>> small.fit(train_loader).n_params_subnet
        10
    """
    return _largest(_flat(model).abs(), count)


def largest_variance(
    model: nn.Module, count: int, train_loader: Iterable[Any], likelihood: Any = "classification", **options: Any
) -> torch.Tensor:
    """The ``count`` weights of the largest posterior variance under a diagonal curvature.

    Args:
        model: Trained.
        count: Weights to choose.
        train_loader: As in :meth:`bridge.Laplace.fit`.
        likelihood: As of :class:`bridge.Laplace`.
        **options: Of :class:`bridge.Laplace`, such as ``prior_precision``.
    """
    la = Laplace(model, likelihood, hessian_structure="diag", **options).fit(train_loader)
    return _largest(la.posterior_variance, count)


def at_random(model: nn.Module, count: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """``count`` weights, each as likely."""
    size = ParameterOrder.of(model).size
    _check(count, size)
    return torch.randperm(size, generator=generator)[:count].sort().values


def by_module(model: nn.Module, names: str | Sequence[str]) -> torch.Tensor:
    """All weights of modules, by names or patterns (``"layer4.*"``)."""
    return _of_names(model, _names(model, names))


def by_parameter(model: nn.Module, names: str | Sequence[str]) -> torch.Tensor:
    """All weights of parameter tensors, by names or patterns (``"*.bias"``)."""
    return _of_names(model, _names(model, names))


def last_layer(model: nn.Module, name: str | None = None) -> torch.Tensor:
    """All weights of one module, by default of the one registered last."""
    return _of_names(model, Subset.checked("last_layer", name, model).names(model) or frozenset())


def of_mask(model: nn.Module, mask: torch.Tensor) -> torch.Tensor:
    """The weights where a mask over all of them is true.

    Raises:
        ValueError: If the mask is of another length, or is true nowhere.
    """
    size = ParameterOrder.of(model).size
    if mask.shape != (size,) or not bool(mask.any()):
        raise ValueError(
            f"A mask of shape {tuple(mask.shape)} with {int(mask.sum())} true: give one per weight, {size}."
        )
    return mask.nonzero().flatten()


def _names(model: nn.Module, patterns: str | Sequence[str]) -> frozenset[str]:
    listed: WeightSubset = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    return Subset.checked(listed, None, model).names(model) or frozenset()


def _of_names(model: nn.Module, names: frozenset[str]) -> torch.Tensor:
    order = ParameterOrder.of(model)
    parts = zip(order.names, order.sizes, strict=True)
    return torch.cat([torch.full((size,), name in names) for name, size in parts]).nonzero().flatten()


def _flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in unwrap(model).parameters() if p.requires_grad])


def _largest(scores: torch.Tensor, count: int) -> torch.Tensor:
    _check(count, scores.numel())
    return scores.topk(count).indices.sort().values.cpu()


def _check(count: int, size: int) -> None:
    whole("count", count)
    if count > size:
        raise ValueError(f"count={count}: the model has {size} weights with requires_grad=True.")
