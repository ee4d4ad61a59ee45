"""Hyperparameters as a user gives them, checked when they are given, in the order of ``model.parameters()``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from bridge.parameter_order import ParameterOrder

Value: TypeAlias = float | np.ndarray
"""One number, or one per tensor, parameter or output."""


@dataclass(frozen=True)
class Hyperparameters:
    """What a posterior depends on beside the curvature.

    Attributes:
        prior_precision: A number, or one per parameter tensor, or one per parameter.
        prior_mean: Likewise.
        sigma_noise: A number, or one per output.
        temperature: A number.
        logit_temperature: A number that divides the predictive logits.
    """

    prior_precision: Value = 1.0
    prior_mean: Value = 0.0
    sigma_noise: Value = 1.0
    temperature: float = 1.0
    logit_temperature: float = 1.0

    @property
    def scale(self) -> float:
        """What the curvature is multiplied with; noise per output is in the curvature already."""
        noise = self.sigma_noise if isinstance(self.sigma_noise, float | int) else 1.0
        return 1.0 / (noise**2 * self.temperature)


def prior_precision(value: Any, order: ParameterOrder) -> Value:
    """A prior precision as a number or an array.

    Args:
        value: A number; one per tensor or one per parameter, in the order of ``model.parameters()``, as a list, an
            array or a tensor; or a mapping from the parameters' names to numbers or arrays in their shapes.
        order: The parameters that it is for.

    Raises:
        ValueError: If it is none of these, or an entry is not positive and finite.
    """
    return _per_parameter("prior_precision", value, order, positive=True)


def prior_mean(value: Any, order: ParameterOrder) -> Value:
    """The mean of the prior, given like :func:`prior_precision`; any finite numbers.

    Raises:
        ValueError: If it is none of these, or an entry is not finite.
    """
    return _per_parameter("prior_mean", value, order, positive=False)


def sigma_noise(value: Any) -> Value:
    """The standard deviation of a regression's noise: a number, or an array with one entry per output.

    Raises:
        ValueError: If an entry is not positive and finite.
    """
    found = _checked("sigma_noise", value, positive=True)
    if not isinstance(found, float | int) and found.size == 1:
        raise ValueError(f"sigma_noise of shape {found.shape}: give one number, or one per output.")
    return found


def temperature(value: Any, name: str = "temperature") -> float:
    """One temperature, of the likelihood or of the logits.

    Raises:
        ValueError: Unless it is one positive, finite number.
    """
    found = _checked(name, value, positive=True)
    if not isinstance(found, float | int):
        raise ValueError(f"{name} of shape {found.shape}: give one positive number.")
    return found


def _per_parameter(name: str, value: Any, order: ParameterOrder, *, positive: bool) -> Value:
    if isinstance(value, Mapping):
        return _from_mapping(name, value, order, positive=positive)
    found = _checked(name, value, positive=positive)
    if isinstance(found, float | int) or found.shape in ((order.size,), (len(order.names),)):
        return found
    if found.ndim > 1:
        raise ValueError(
            f"{name} of shape {found.shape}: give one number, one per layer or one per parameter. To go on from an "
            "earlier posterior add the new data to it, fit(loader, override=False)."
        )
    raise ValueError(
        f"{name} of shape {found.shape} fits neither one number, nor one per layer ({len(order.names)} tensors), nor "
        f"one per parameter ({order.size}), in the order of model.parameters()."
    )


def _from_mapping(name: str, value: Mapping[str, Any], order: ParameterOrder, *, positive: bool) -> np.ndarray:
    if set(value) != set(order.names):
        odd = sorted(map(str, set(value) ^ set(order.names)))
        raise ValueError(
            f"{name} as a mapping needs one entry for each parameter that the posterior covers; missing or unknown: "
            f"{', '.join(odd[:5])}. The names are those of model.named_parameters() with requires_grad=True."
        )
    parts = []
    for key, shape in zip(order.names, order.shapes, strict=True):
        entry = np.asarray(_checked(f"{name}[{key!r}]", value[key], positive=positive))
        if entry.ndim and entry.shape != shape:
            raise ValueError(f"{name}[{key!r}] has shape {entry.shape}, the parameter {shape}. Give that, or a number.")
        parts.append(np.broadcast_to(entry, shape).reshape(-1))
    return np.concatenate(parts)


def _checked(name: str, value: Any, *, positive: bool) -> Value:
    """A float, or an array in float64 of one axis or more."""
    wanted = "positive, finite numbers" if positive else "finite numbers"
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().double().numpy() if value.is_floating_point() else value.detach().cpu().numpy()
    try:
        array = np.asarray(value)
    except ValueError as error:  # a ragged list
        raise ValueError(f"{name}={value!r}: give {wanted}.") from error
    if array.dtype.kind not in "iuf" and array.dtype.name != "bfloat16":
        raise ValueError(f"{name}={value!r}: give {'a positive number' if positive else 'a number'}, or {wanted}.")
    array = array.astype(np.float64)
    if not np.isfinite(array).all() or (positive and not (array > 0).all()):
        shown = f"={value!r}" if array.ndim == 0 else f" of shape {array.shape}"
        single = "give a positive number" if positive else "give a finite number"
        raise ValueError(f"{name}{shown}: {single if array.ndim == 0 else 'give ' + wanted}.")
    return float(array.reshape(())) if array.size == 1 and array.ndim <= 1 else array


def shown(value: Value) -> torch.Tensor:
    """A hyperparameter as its user meets it: a tensor of its own, without axes for one number."""
    return torch.from_numpy(np.array(value, np.float64))


def in_core(value: Value, reorder: Callable[[np.ndarray], np.ndarray]) -> Value:
    """A value per tensor or parameter in the core's order."""
    return value if isinstance(value, float | int) else reorder(value)


def per_tensor(value: np.ndarray, order: ParameterOrder) -> np.ndarray:
    """One number per tensor, of a value that may be one per parameter.

    Raises:
        ValueError: If the numbers of a tensor differ.
    """
    if value.shape != (order.size,):
        return value
    parts = np.split(value, np.cumsum(order.sizes)[:-1])
    if any(np.ptp(part) > 0 for part in parts if part.size):
        raise ValueError("The numbers of one tensor differ.")
    return np.array([part[0] if part.size else 1.0 for part in parts])


def per_parameter(value: Value, order: ParameterOrder) -> Value:
    """A number, or one per parameter, of a value that may be one per tensor."""
    if isinstance(value, float | int) or value.shape == (order.size,):
        return value
    return np.repeat(value, order.sizes)
