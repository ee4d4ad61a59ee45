"""The evidence as a function of hyperparameters that torch can differentiate."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from bridge.backprop import without_second
from bridge.hyperparameters import in_core
from bridge.parameter_order import ParameterOrder
from bridge.state import LaplaceState
from jax_core.operators import Operator
from jax_core.tuning import evidence_loss
from jax_core.types import Params


def differentiable_evidence(la: LaplaceState, prior_precision: Any, sigma_noise: Any) -> torch.Tensor:
    """The log marginal likelihood at the hyperparameters in force, with a graph to the tensors they were set from.

    Args:
        la: Fitted, its hyperparameters set to these values.
        prior_precision: The tensor that the prior was set from, or anything that has no gradient.
        sigma_noise: Likewise of the noise.
    """
    value, slopes = _value_and_slopes(la)
    moving = (v if isinstance(v, torch.Tensor) and v.requires_grad else None for v in (prior_precision, sigma_noise))
    along = [(tensor, slope) for tensor, slope in zip(moving, slopes, strict=True) if tensor is not None]
    shaped = [
        torch.tensor(_spread(slope, tensor, la.order)).reshape(tensor.shape).to(tensor) for tensor, slope in along
    ]
    first = along[0][0]
    found = torch.tensor(value, dtype=first.dtype, device=first.device)
    return _Evidence.apply(found, shaped, *(tensor for tensor, _ in along))


def _spread(slope: np.ndarray, tensor: torch.Tensor, order: ParameterOrder) -> np.ndarray:
    """A slope per tensor of parameters, of numbers that were given per parameter and are equal within each."""
    if slope.ndim == 0 or slope.size == tensor.numel():
        return slope
    return np.repeat(slope / order.sizes, order.sizes)


class _Evidence(torch.autograd.Function):
    """A number with known slopes along some tensors."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, slopes: list[torch.Tensor], *along: torch.Tensor) -> torch.Tensor:
        ctx.slopes = slopes
        ctx.save_for_backward(*along)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        slopes = [(grad_outputs[0] * slope).detach() for slope in ctx.slopes]
        return None, None, *without_second(slopes, (*grad_outputs, *ctx.saved_tensors))


def _value_and_slopes(la: LaplaceState) -> tuple[float, tuple[np.ndarray, np.ndarray]]:
    """The evidence, and its derivatives with respect to prior precision and noise as the user gave them."""
    fit, _ = la.fit_result()
    hyper, order = la.hyperparameters, la.order
    dtype = jax.tree.leaves(fit.params)[0].dtype
    noise = jnp.asarray(hyper.sigma_noise if isinstance(hyper.sigma_noise, float | int) else 1.0, dtype)
    prior = jnp.asarray(in_core(hyper.prior_precision * fit.prior_factor, order.to_core), dtype)
    mean = jnp.asarray(la.core_prior_mean, dtype)
    likelihood, temperature = fit.loss.likelihood, hyper.temperature

    def log_likelihood(noise: jax.Array) -> jax.Array:
        return fit.fitted.log_likelihood(likelihood, noise) / temperature

    fitted_part, of_fit = jax.value_and_grad(log_likelihood)(noise)
    scale = 1.0 if not isinstance(hyper.sigma_noise, float | int) else 1 / noise**2
    loss, (of_prior, of_scale) = _loss_and_slopes((prior, scale / temperature), fit.fitted.curvature, fit.params, mean)
    of_noise = of_fit + 2 * of_scale / (noise**3 * temperature)
    found = np.asarray(-np.asarray(of_prior, np.float64) * fit.prior_factor)
    return float(fitted_part - loss), (found if found.ndim == 0 else order.to_torch(found), np.asarray(of_noise))


@jax.jit
@jax.value_and_grad
def _loss_and_slopes(moving: tuple[jax.Array, Any], curvature: Operator, params: Params, prior_mean: Any) -> jax.Array:
    prior, scale = moving
    return evidence_loss(curvature.rescale(scale), params, prior_mean=prior_mean)(prior)
