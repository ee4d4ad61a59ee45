"""What ``la(x)`` asks the core for, by the kind of prediction, the likelihood and the size of the outputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import torch

from bridge.backprop import differentiable, wants_gradient
from bridge.fitting import FittedModel
from bridge.options import LinkName, PredictionType
from bridge.parameter_order import ParameterOrder
from bridge.placement import compiling_for, place_of
from bridge.prediction import (
    InModelShape,
    OfSamples,
    SamplesInModelShape,
    checked_inputs,
    prediction_from_gaussian,
    to_torch_like,
    unchanged,
)
from jax_core.gradients.jacobian_maps import map_jacobians
from jax_core.gradients.walk import OfBatches
from jax_core.likelihoods import Bernoulli, Categorical
from jax_core.posterior import Posterior
from jax_core.predictive import joint_predictive, linearized_predictive, marginal_predictive, sampled_predictive
from jax_core.predictive.sampled import OfDraws
from jax_core.xla.compiled import as_jit_argument

JACOBIAN_BYTES = 2**30  # of one example
_COVARIANCE_BYTES = 2**30  # of a batch
_ROWS_BYTES = 2**33  # likewise, of Jacobians that are asked for
_BY_VARIANCE: tuple[LinkName, ...] = ("probit", "mean_field_0")


@dataclass(frozen=True)
class Request:
    """What is asked for; see :meth:`bridge.Laplace.forward`."""

    pred_type: PredictionType
    link: LinkName
    num_samples: int
    key: jax.Array
    variances: bool
    logit_temperature: float = 1.0
    joint: bool = False
    backprop: bool = False


def predict(fit: FittedModel, posterior: Posterior, x: Any, request: Request) -> Any:
    """A prediction for a batch of tensors."""
    likelihood, layout = fit.predicted, fit.layout
    if request.joint and is_regression(fit) and request.pred_type != "nn":
        return distribution(fit, posterior, x, joint=True, backprop=request.backprop)
    if request.pred_type == "nn":
        average = OfSamples(type(likelihood), request.logit_temperature, layout)
        drawn = {"key": request.key, "num_samples": request.num_samples, "finish": average}
        return _pushed(fit, x, partial(sampled_predictive, posterior=posterior, **drawn), backprop=request.backprop)
    variances = request.variances or _too_large(fit, x)
    link = link_for(request.link)
    how = (link, request.key, request.num_samples)
    inner = prediction_from_gaussian(
        likelihood, layout, *how, logit_temperature=request.logit_temperature, variances=variances
    )
    last = InModelShape(as_jit_argument(inner), layout)
    predictive = partial(_predictive_for(fit, link, variances=variances), posterior=posterior, finish=last)
    # the noise of a Monte Carlo link is drawn for the batch as it is
    return _pushed(fit, x, predictive, backprop=request.backprop, cut=None if link == "mc" else _cut)


def sampled_outputs(
    fit: FittedModel, posterior: Posterior, x: Any, *, key: jax.Array, num_samples: int, backprop: bool = False
) -> Any:
    """Outputs ``(S, B, *shape)`` of the network itself at weights drawn from the posterior."""
    drawn = {"key": key, "num_samples": num_samples, "finish": SamplesInModelShape(fit.layout)}
    predictive = partial(sampled_predictive, posterior=posterior, **drawn)
    return _pushed(fit, x, predictive, backprop=backprop, cut=_cut_samples)


def distribution(
    fit: FittedModel, posterior: Posterior, x: Any, *, joint: bool, backprop: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance of the outputs for a batch of tensors; the mean in the model's shape."""
    predictive, axes, cut = (joint_predictive, (1, 3), _cut_joint) if joint else (linearized_predictive, (1, 2), _cut)
    whole = InModelShape(as_jit_argument(unchanged), fit.layout, axes)
    return _pushed(fit, x, partial(predictive, posterior=posterior, finish=whole), backprop=backprop, cut=cut)


def jacobians(fit: FittedModel, x: Any, order: ParameterOrder) -> tuple[torch.Tensor, torch.Tensor]:
    """Jacobians ``(B, D, P)`` over the weights in torch's order, and outputs in the model's shape."""
    count, outputs = jax.tree.leaves(x)[0].shape[0], fit.layout.size
    needed = count * fit.jacobian_bytes
    if needed > _ROWS_BYTES:
        raise ValueError(
            f"Jacobians of {outputs} outputs of {count} samples would take {needed / 2**30:.3g} GiB. Give smaller "
            "batches, or ask for what is made of them: la.predictive_distribution(x)."
        )
    found, rows = _pushed(fit, x, partial(map_jacobians, params=fit.params, function=_with_rows))
    return rows[:, fit.layout.order][..., order.places_in_core], _in_model_shape(fit, found)


def _with_rows(outputs: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    return outputs, rows


def _in_model_shape(fit: FittedModel, outputs: torch.Tensor) -> torch.Tensor:
    return outputs[:, fit.layout.order].reshape(len(outputs), *fit.layout.shape)


def _few_sizes(count: int) -> int:
    """The size that a batch is filled up to before it is differentiated: optimisers of inputs come with all sizes."""
    return 1 << (count - 1).bit_length() if count < 64 else -(-count // 64) * 64


def _cut(found: Any, count: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[:count], found)


def _cut_joint(found: tuple[torch.Tensor, torch.Tensor], count: int) -> tuple[torch.Tensor, torch.Tensor]:
    mean, covariance = found
    return mean[:count], covariance[:count, :, :count]


def _cut_samples(found: torch.Tensor, count: int) -> torch.Tensor:
    return found[:, :count]


def _pushed(
    fit: FittedModel,
    x: Any,
    predictive: Callable[[Any], OfBatches | OfDraws],
    *,
    backprop: bool = False,
    cut: Callable[[Any, int], Any] | None = _cut,
) -> Any:
    """What a predictive of a model gives for a batch of tensors, as tensors like it.

    Before it is differentiated, a batch is filled up to one of few sizes where ``cut`` can take its examples out of
    what comes back.
    """
    first = jax.tree.leaves(x)[0]
    checked = checked_inputs(fit.traced, x)
    with compiling_for(place_of(fit.traced.params)):
        if wants_gradient(x) and backprop:
            return _as_of_one(fit, first, _differentiable(fit, x, checked, predictive(fit.model_fn), cut))
        if wants_gradient(x):
            warnings.warn(
                "The input requires a gradient, and predictions of this Laplace approximation are not differentiable "
                "by torch: none will come back. Construct it with enable_backprop=True, call la(x.detach()), or "
                "predict under torch.no_grad().",
                stacklevel=5,
            )
        result = to_torch_like(first, predictive(fit.split.head)(fit.features(checked)))
    return _as_of_one(fit, first, result)


def _differentiable(
    fit: FittedModel, x: Any, checked: Any, function: OfBatches | OfDraws, cut: Callable[[Any, int], Any] | None
) -> Any:
    """A function of a batch of tensors as torch can differentiate it: by programs for few sizes of batches."""
    count = jax.tree.leaves(x)[0].shape[0]

    def of(batch: Any) -> Any:
        return differentiable(function.with_pullback, batch, checked_inputs(fit.traced, batch))

    if cut is None or count == 0:
        return of(x)
    if cut is not _cut:
        return cut(of(_filled(x, _few_sizes(count) - count)), count)
    size = min(function.piece(checked), _few_sizes(count))
    whole = _filled(x, -count % size)
    parts = [of(jax.tree.map(lambda leaf, i=i: leaf[i : i + size], whole)) for i in range(0, count, size)]
    return cut(parts[0] if len(parts) == 1 else jax.tree.map(lambda *leaves: torch.cat(leaves), *parts), count)


def _filled(batch: Any, missing: int) -> Any:
    """A batch with its last example repeated."""
    if not missing:
        return batch
    return jax.tree.map(lambda leaf: torch.cat([leaf, leaf[-1:].expand(missing, *leaf.shape[1:])]), batch)


def _as_of_one(fit: FittedModel, first: torch.Tensor, result: Any) -> Any:
    """A batch of one in the shape that the model gives it, where ``squeeze()`` takes its batch axis."""
    of_one, full = fit.layout.of_one, (1, *fit.layout.shape)
    if of_one is None or first.shape[0] != 1:
        return result
    return jax.tree.map(lambda leaf: leaf.reshape(of_one) if tuple(leaf.shape) == full else leaf, result)


def link_for(link: LinkName) -> LinkName:
    """What ``"auto"`` stands for until a search has chosen another."""
    return "probit" if link == "auto" else link


def best_link(fit: FittedModel, link: LinkName) -> LinkName:
    """What ``"auto"`` stands for in a search that tunes prior and logits under it: the best whose moments are there."""
    if link != "auto":
        return link
    return "mean_field_2" if fit.jacobian_bytes <= JACOBIAN_BYTES else "probit"


def is_regression(fit: FittedModel) -> bool:
    """Whether predictions are means and variances, not probabilities."""
    return not isinstance(fit.predicted, Categorical | Bernoulli)


def _too_large(fit: FittedModel, x: Any) -> bool:
    """Whether a regression's covariance would not fit, with a warning that says so."""
    outputs, count = fit.layout.size, jax.tree.leaves(x)[0].shape[0]
    needed = 4 * max(count, 1) * outputs**2
    if not is_regression(fit) or needed <= _COVARIANCE_BYTES:
        return False
    warnings.warn(
        f"The covariance of {outputs} outputs for each of {count} samples would take {needed / 2**30:.1f} GiB: "
        "variances are returned in its place, as with diagonal_output=True. Give smaller batches for the covariance.",
        stacklevel=5,
    )
    return True


def _predictive_for(fit: FittedModel, link: LinkName, *, variances: bool) -> Callable[..., Any]:
    """The exact predictive, or where one example's Jacobian is too large, that of the variances if they suffice.

    Raises:
        ValueError: If they do not.
    """
    if fit.jacobian_bytes <= JACOBIAN_BYTES:
        return linearized_predictive
    likelihood = fit.predicted
    by_variance = isinstance(likelihood, Categorical) and link in _BY_VARIANCE
    if variances or by_variance or isinstance(likelihood, Bernoulli):
        return marginal_predictive
    remedy = "diagonal_output=True" if is_regression(fit) else "link_approx='probit', which takes variances alone"
    raise ValueError(
        f"The exact covariance of one example's outputs needs a Jacobian of {fit.jacobian_bytes / 2**30:.1f} GiB. Use "
        f"{remedy}, pred_type='nn', or a last-layer posterior: subset_of_weights='last_layer', or requires_grad=False "
        "on the other parameters before fit."
    )
