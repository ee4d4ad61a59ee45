"""The sets of metrics that are asked for most, as steps of an evaluation.

A step of the regression's set takes a sample or a batch; a mean over samples of a sample's chi squared, negative
log-likelihood or CRPS is that of the whole, and the root mean squared error is not: square, average, take the root.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_core.evaluation import chi_squared, correctness, crps_gaussian, nll_gaussian, rmse
from jax_core.tutorial_api.evaluate import Entries, MetricStep, apply_fns


def chi_squared_zero(
    pred_mean: Float[Array, "*B"], pred_std: Float[Array, "*B"], target: Float[Array, "*B"]
) -> Float[Array, ""]:
    r"""How far predicted variances are from the errors met, $|\chi^2 - 1|$; zero for a calibrated Gaussian.

    Args:
        pred_mean: Predicted means.
        pred_std: Predicted standard deviations.
        target: Targets of the same shape.

    Raises:
        ValueError: If the shapes differ.
    """
    return jnp.abs(chi_squared(pred_mean, pred_std, target) - 1)


def _confidences(results: Entries, aux: Entries) -> tuple[Entries, Entries]:
    """Of the network and of the predictive: the largest probability, whether it is right, what the target got."""
    if not (entries := [name for name in ("mc_pred_act", "special_pred_act", "pred_act") if name in aux]):
        raise KeyError(
            f"No probabilities among {sorted(aux)}. Put lin_mc_pred_act or lin_special_pred_act into pushforward_fns."
        )
    found: Entries = {}
    for name, prob in (("map", jax.nn.softmax(aux["map"])), ("pred", aux[entries[0]])):
        target = aux["target"]
        index = jnp.argmax(target, -1) if jnp.shape(target) == prob.shape else target.astype(int)
        found[f"confidences_{name}"] = prob.max(-1)
        found[f"correctness_{name}"] = correctness(prob, target)
        found[f"nll_{name}"] = -jnp.log(jnp.take_along_axis(prob, index[..., None], axis=-1)[..., 0])
    return results | found, aux


DEFAULT_REGRESSION_METRICS: tuple[MetricStep, ...] = (
    apply_fns(
        rmse,
        chi_squared,
        nll_gaussian,
        crps_gaussian,
        names=["rmse", "chi^2", "nll", "crps"],
        pred_mean="pred_mean",
        pred_std="pred_std",
        target="target",
    ),
)
DEFAULT_CLASSIFICATION_METRICS: tuple[MetricStep, ...] = (_confidences,)
