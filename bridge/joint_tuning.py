"""Prior precision together with the logits' temperature or the noise: what the core's searches are given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bridge.fitting import FittedModel
from bridge.options import LinkName
from bridge.predictives import JACOBIAN_BYTES, link_for
from bridge.state import LaplaceState
from jax_core.data.batches import Batch, batch_size
from jax_core.data.passes import LoaderPasses
from jax_core.likelihoods import Bernoulli, Categorical, Gaussian
from jax_core.predictive import link_by_name
from jax_core.tuning import Report, Tuned
from jax_core.tuning.collect import Searched, held_out_search, parts_with_targets, penalized_search
from jax_core.tuning.families import ClassFamily, Family, LabelFamily
from jax_core.tuning.followed import LEAST_SHARE, followed_parameters
from jax_core.tuning.joint import (
    NO_UNCERTAINTY,
    Choice,
    default_precisions,
    default_temperatures,
    most_uncertain,
    most_uncertain_within,
)
from jax_core.tuning.noise import noisy_evidence, noisy_held_out
from jax_core.tuning.optimism import effective_parameters
from jax_core.tuning.search import checked_grid
from jax_core.xla.compiled import as_jit_argument

_SEEN, _POSITIONS, _FEWEST = 512, 8192, 16
"""Training samples that a search without held-out data looks at; where a sample has several positions, fewer."""


class Doubts(NamedTuple):
    """Estimated losses on new data, nats a sample."""

    chosen: float
    network: float


def joint(
    la: LaplaceState,
    fit: FittedModel,
    passes: LoaderPasses | None,
    grid: Any,
    *,
    link: LinkName,
    evidence: Callable[[], float],
) -> Tuned:
    """The most uncertainty that held-out data, or without them the training samples kept, allow.

    Raises:
        ValueError: If there are no data to look at, or one example's Jacobian is too large.
    """
    _refuse_large(fit)
    batches = None if passes is None else fit.for_head(passes)
    precisions = default_precisions() if grid is None else checked_grid(grid)
    if isinstance(fit.loss.likelihood, Gaussian):
        assert batches is not None
        return _with_noise(la, fit, batches, precisions)
    if batches is not None:
        family, temperatures = family_of(la, fit, link), default_temperatures()
        found = held_out_search(
            *scaled_model(la, fit), batches, **family, precisions=precisions, temperatures=temperatures
        )
        found = found.without_sharpest()
        choice = most_uncertain(*_choosing(found))
        return _tuned(found, choice, "held-out likelihood, joint", f"{len(found.network)} held-out samples")
    if grid is None:
        precisions = precisions[::2]  # the penalty needs derivatives of the link in every direction
    follow = evidence()
    parameters = _followed(la, fit, follow)
    found = _on_seen(la, fit, link, precisions, default_temperatures(), follow, parameters).without_sharpest()
    choice = most_uncertain_within(*_choosing(found), slack=1 / fit.fitted.num_total_samples)
    return _tuned(
        found, choice, "training likelihood and covariance penalty, joint", f"{len(found.network)} training samples"
    )


def doubts_about(la: LaplaceState, fit: FittedModel, precision: Any) -> Doubts | None:
    """What predictions under a scalar precision will lose on new data, and the network's own; ``None`` if unknown."""
    known = isinstance(fit.loss.likelihood, Categorical | Bernoulli) and isinstance(precision, float)
    if not known or not fit.seen or fit.jacobian_bytes > JACOBIAN_BYTES:
        return None
    link = link_for(la.link_approx)
    tried = np.array([precision]), np.array([la.logit_temperature])
    found = _on_seen(la, fit, link, *tried, precision, effective_parameters(scaled_model(la, fit)[2], precision))
    count = found.table.counts.sum()
    return Doubts(float(found.table.losses.sum() / count), float(found.network.sum() / count))


def with_noise_by_evidence(fit: FittedModel, log_det: Callable[[float], float], squared_norm: float) -> Tuned:
    """Precision and noise of a regression by the evidence."""
    tuned = noisy_evidence(log_det, squared_norm, 2 * fit.fitted.nll, fit.fitted.num_outputs)
    report = Report("the evidence, joint", "the training data", tuned.prior_precision, sigma_noise=tuned.sigma_noise)
    return tuned._replace(report=report)


def _on_seen(
    la: LaplaceState,
    fit: FittedModel,
    link: LinkName,
    precisions: np.ndarray,
    temperatures: np.ndarray,
    follow: float,
    parameters: float,
) -> Searched:
    if not fit.seen:
        raise ValueError(
            "This posterior was read from a file, which holds no training data to tune on. Give held-out data as "
            "val_loader=, or choose method='marglik', which needs none."
        )
    family = family_of(la, fit, link)
    count = max(_FEWEST, min(_SEEN, _POSITIONS // family["positions"]))
    return penalized_search(
        *scaled_model(la, fit),
        [Batch(fit.features(batch.input), batch.target) for batch in _at_most(fit.seen, count)],
        **family,
        precisions=precisions,
        temperatures=temperatures,
        follow=follow,
        mean_trace=parameters / (fit.fitted.num_total_samples * family["positions"]),
        mean_nll=fit.fitted.nll / fit.fitted.num_total_samples if _is_plain(fit.loss.likelihood) else None,
    )


def _is_plain(likelihood: Any) -> bool:
    """Whether it is the negative log-likelihood that predictions are judged by: no weights, no smoothing."""
    if isinstance(likelihood, Categorical):
        return likelihood.weight is None and not likelihood.label_smoothing
    return isinstance(likelihood, Bernoulli) and likelihood.positive_weight is None


def _followed(la: LaplaceState, fit: FittedModel, precision: float) -> float:
    """Effective parameters, less what training has not followed where a gradient over the data tells.

    Positions of one sample err together, so that theirs would seem to be left of the noise of many.
    """
    curvature, fitted = scaled_model(la, fit)[2], fit.fitted
    told = _positions(fit) == 1 and fitted.num_samples >= LEAST_SHARE * fitted.num_total_samples
    known = fit.loss_gradient if told else None
    if known is None:
        return effective_parameters(curvature, precision)
    gradient, samples = known
    share = min(1.0, samples / fitted.num_total_samples)
    return followed_parameters(curvature, precision, gradient * np.sqrt(la.hyperparameters.scale / share), share=share)


def _with_noise(la: LaplaceState, fit: FittedModel, batches: Iterable[Batch], precisions: np.ndarray) -> Tuned:
    """Precision and, where it is one number, noise of a regression on held-out data."""
    given = la.hyperparameters.sigma_noise
    scalar = isinstance(given, float | int)
    curvature = fit.fitted.curvature.rescale(1 / la.temperature if scalar else la.hyperparameters.scale)
    outputs = fit.layout.size
    residuals, spreads = [], []
    for part, target in parts_with_targets(fit.split.head, fit.params, curvature, batches, precisions, 1):
        residuals.append(np.asarray(target.reshape(-1) - part.mean[:, 0], np.float64).reshape(-1, outputs))
        spread = np.asarray(part.covariance[:, :, 0, 0], np.float64)  # (b outputs, T)
        spreads.append(np.moveaxis(spread.reshape(-1, outputs, len(precisions)), 1, 2))
    found = np.concatenate(residuals), np.concatenate(spreads)
    tuned, network = noisy_held_out(*found, precisions, None if scalar else np.asarray(given).reshape(-1))
    report = Report(
        "held-out likelihood, joint",
        f"{len(found[0])} held-out samples",
        tuned.prior_precision,
        chosen=tuned.loss,
        network=network,
        sigma_noise=tuned.sigma_noise,
    )
    return tuned._replace(report=report)


def scaled_model(la: LaplaceState, fit: FittedModel) -> tuple[Any, Any, Any]:
    """The head, its weights, and the curvature under the noise and temperature in force."""
    return fit.split.head, fit.params, fit.fitted.curvature.rescale(la.hyperparameters.scale)


def family_of(la: LaplaceState, fit: FittedModel, link: LinkName) -> dict[str, Any]:
    """The likelihood's family, and how an example's outputs fall into positions."""
    likelihood, positions = fit.loss.likelihood, _positions(fit)
    family: Family = LabelFamily()
    if isinstance(likelihood, Categorical):
        named = link_by_name(link, key=jax.random.key(la.seed), num_samples=la.n_samples)
        family = ClassFamily(as_jit_argument(named), likelihood.ignore_index)
    return {"family": family, "together": fit.layout.size // positions, "positions": positions}


def _positions(fit: FittedModel) -> int:
    """Of an example: where it has a class, or labels one by one."""
    return fit.layout.size // (fit.layout.core_shape[-1] if isinstance(fit.loss.likelihood, Categorical) else 1)


def _choosing(found: Searched) -> tuple[Any, ...]:
    return found.table, found.scaled, found.precisions, found.temperatures, found.temperature


def _tuned(found: Searched, choice: Choice, way: str, samples: str) -> Tuned:
    count = found.table.counts.sum()
    precision = min(choice.precision, NO_UNCERTAINTY)
    report = Report(
        way,
        samples,
        precision,
        chosen=choice.loss,
        network=float(found.network.sum() / count),
        scaled=float(found.scaled.sum() / count),
        scaling_temperature=found.temperature,
        logit_temperature=choice.temperature,
    )
    curve = found.table.losses.sum(0).min(-1) / count
    return Tuned(precision, choice.loss, found.precisions, curve, choice.temperature, None, report)


def _at_most(batches: Sequence[Batch], count: int) -> list[Batch]:
    """The first samples of some batches, as many of each."""
    share = max(1, count // len(batches))
    return [jax.tree.map(lambda leaf: jnp.asarray(leaf)[:share], batch) for batch in batches if batch_size(batch)]


def _refuse_large(fit: FittedModel) -> None:
    if fit.jacobian_bytes > JACOBIAN_BYTES:
        raise ValueError(
            f"A search by predictions needs one example's Jacobian, {fit.jacobian_bytes / 2**30:.1f} GiB here. Use "
            "method='marglik', or a last-layer posterior: set requires_grad=False on the other parameters before fit."
        )
