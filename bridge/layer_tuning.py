"""A prior precision for each layer from held-out data: what the core's search by gradients is given."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bridge.fitting import FittedModel
from bridge.joint_tuning import family_of, scaled_model
from bridge.options import LinkName
from bridge.state import LaplaceState
from jax_core.data.passes import LoaderPasses
from jax_core.likelihoods import Gaussian
from jax_core.tuning import Tuned
from jax_core.tuning.collect import target_counts
from jax_core.tuning.families import Family
from jax_core.tuning.joint import NO_UNCERTAINTY, sharpest_temperature
from jax_core.tuning.layerwise import Products, layer_products, refine
from jax_core.types import pytree

_FAR = 1e5  # where a search begins that found no uncertainty to be best


@pytree
@dataclass(frozen=True)
class _OfLogits:
    """The mean loss of classes or labels; the other hyperparameter is the temperature of the logits."""

    family: Family
    count: Float[Array, ""]

    def __call__(self, products: Products, covariance: Array, temperature: Array) -> Array:
        natural = self.family.natural(products.mean / temperature, covariance / temperature**2)
        return self.family.nll(natural, products.target).sum() / self.count


@pytree
@dataclass(frozen=True)
class _OfValues:
    r"""The mean loss of a number; precisions are $\sigma^2 \tau_l$, and the other hyperparameter is $\sigma$."""

    def __call__(self, products: Products, covariance: Array, sigma: Array) -> Array:
        residual = products.target.reshape(-1) - products.mean[:, 0]
        variance = sigma**2 * (1 + covariance[:, 0, 0])
        return (0.5 * jnp.log(2 * jnp.pi * variance) + 0.5 * residual**2 / variance).mean()


def refined(la: LaplaceState, fit: FittedModel, passes: LoaderPasses, tuned: Tuned, link: LinkName) -> Tuned:
    """The choice of one precision and what goes with it, improved by gradients for each layer.

    What one precision gave stays where nothing is better on the held-out data.

    Raises:
        ValueError: If noise per output is given, or what is kept of the data does not fit.
        TypeError: For a structure without a precision per layer.
    """
    head, params, curvature = scaled_model(la, fit)
    batches = fit.for_head(passes)
    precision = _FAR if tuned.prior_precision >= NO_UNCERTAINTY else float(tuned.prior_precision)
    values = isinstance(fit.loss.likelihood, Gaussian)
    if values:
        if tuned.sigma_noise is None:
            raise ValueError(
                "A prior precision per layer from held-out data tunes one noise beside it, and sigma_noise has one for "
                "each output. Give one number, or prior_structure='scalar'."
            )
        unit = fit.fitted.curvature.rescale(1 / la.temperature)
        groups, products = layer_products(head, params, unit, batches, together=1)
        sigma = tuned.sigma_noise
        loss: Any = _OfValues()
        found = refine(groups, products, loss, precision * sigma**2, sigma, (sigma / 10, sigma * 10))
        precisions = found.precisions / found.other**2
        other = {"sigma_noise": found.other}
    else:
        chosen = family_of(la, fit, link)
        groups, products = layer_products(head, params, curvature, batches, together=chosen["together"])
        family, temperature = chosen["family"], tuned.logit_temperature or 1.0
        report = tuned.report
        scaling = 1.0 if report is None or report.scaling_temperature is None else report.scaling_temperature
        sharpest = min(temperature, sharpest_temperature(scaling))
        count = target_counts(family, products.target, chosen["positions"]).sum()
        loss = _OfLogits(family, jnp.asarray(count, products.mean.dtype))
        found = refine(groups, products, loss, precision, temperature, (sharpest, 100.0))
        precisions = found.precisions
        other = {"logit_temperature": found.other}
    if not found.loss < min(found.start, tuned.loss):
        return tuned
    return _replaced(la, tuned, precisions, found.loss, other)


def _replaced(la: LaplaceState, tuned: Tuned, precisions: np.ndarray, loss: float, other: dict[str, float]) -> Tuned:
    ordered = la.order.to_torch(precisions)
    report = tuned.report
    if report is not None:
        way = "held-out likelihood, joint, then for each layer"
        report = dataclasses.replace(report, way=way, prior_precision=ordered, chosen=loss, **other)
    tried = np.stack([np.full(len(ordered), float(tuned.prior_precision)), ordered])
    losses = np.array([tuned.loss, loss])
    return tuned._replace(prior_precision=ordered, loss=loss, precisions=tried, losses=losses, report=report, **other)
