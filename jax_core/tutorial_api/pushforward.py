"""Predictives for one example, assembled from small steps: what is asked for is computed, once.

A step maps ``(results, point)`` to results with more entries; ``set_lin_pushforward`` and ``set_nonlin_pushforward``
chain the steps into a function of one input, to be vmapped and compiled. The keys are ``map``, ``pred_mean``,
``pred_var``, ``pred_std``, ``pred_cov``, ``samples``, ``mc_pred_act`` and ``special_pred_act``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_core.data.trees import flattener
from jax_core.gradients.jacobians import jacobian
from jax_core.posterior import Posterior
from jax_core.predictive.links import Link, link_by_name
from jax_core.tutorial_api.posterior import PosteriorFn
from jax_core.types import ModelFn, Params
from jax_core.xla.convolutions import with_fast_convolutions
from jax_core.xla.precision import full_precision


@dataclass(frozen=True)
class Point:
    """All that a step may need at one input.

    Attributes:
        model_fn: ``model_fn(input, params)``.
        params: The mean.
        posterior: The Gaussian around it.
        input: The input.
        deviations: Samples of the weights minus the mean, flattened ``(N, P)``; the same for every input.
        link: Closed-form link of ``special_pred_act``.
        rows: The Jacobian ``(C, P)``, set by :func:`lin_setup`.
    """

    model_fn: ModelFn
    params: Params
    posterior: Posterior
    input: Any
    deviations: Float[Array, "N P"] | None
    link: Link
    rows: Float[Array, "C P"] | None = None


Results: TypeAlias = dict[str, Array]
Step: TypeAlias = Callable[[Results, Point], tuple[Results, Point]]


def _rows(point: Point) -> Float[Array, "C P"]:
    if point.rows is None:
        raise ValueError("The linearised steps need the Jacobian: put lin_setup first in pushforward_fns.")
    return point.rows


def _deviations(point: Point) -> Float[Array, "N P"]:
    if point.deviations is None:
        raise ValueError("Sampling needs key= and num_samples= (at least one) in the call that sets the pushforward.")
    return point.deviations


def lin_setup(results: Results, point: Point) -> tuple[Results, Point]:
    """Linearise the network at the input."""
    return results, replace(point, rows=jacobian(point.model_fn, point.params, point.input)[1])


def lin_pred_mean(results: Results, point: Point) -> tuple[Results, Point]:
    """``pred_mean``: the linearised network's mean is its output at the mean weights."""
    return results | {"pred_mean": results["map"]}, point


def lin_pred_cov(results: Results, point: Point) -> tuple[Results, Point]:
    r"""``pred_cov``: $J \Sigma J^\top$, exact, ``(C, C)``."""
    return results | {"pred_cov": point.posterior.output_covariance(_rows(point))}, point


def lin_pred_var(results: Results, point: Point) -> tuple[Results, Point]:
    """``pred_var``: the diagonal of the covariance, in the output's shape."""
    if "pred_cov" not in results:
        results, point = lin_pred_cov(results, point)
    return results | {"pred_var": jnp.diagonal(results["pred_cov"]).reshape(results["map"].shape)}, point


def lin_pred_std(results: Results, point: Point) -> tuple[Results, Point]:
    """``pred_std``: its root."""
    if "pred_var" not in results:
        results, point = lin_pred_var(results, point)
    return results | {"pred_std": jnp.sqrt(results["pred_var"])}, point


def lin_samples(results: Results, point: Point) -> tuple[Results, Point]:
    """``samples``: outputs of the linearised network at sampled weights, the same weights for every input."""
    shifts = _deviations(point) @ _rows(point).T  # (N, C)
    return results | {"samples": results["map"] + shifts.reshape(-1, *results["map"].shape)}, point


def lin_mc_pred_act(results: Results, point: Point) -> tuple[Results, Point]:
    """``mc_pred_act``: the softmax averaged over samples."""
    if "samples" not in results:
        results, point = lin_samples(results, point)
    return results | {"mc_pred_act": jax.nn.softmax(results["samples"], axis=-1).mean(0)}, point


def lin_special_pred_act(results: Results, point: Point) -> tuple[Results, Point]:
    """``special_pred_act``: probabilities by the closed-form link."""
    if "pred_cov" not in results:
        results, point = lin_pred_cov(results, point)
    return results | {"special_pred_act": point.link(results["map"], results["pred_cov"])}, point


def nonlin_setup(results: Results, point: Point) -> tuple[Results, Point]:
    """Check that weights can be sampled."""
    _deviations(point)
    return results, point


def nonlin_samples(results: Results, point: Point) -> tuple[Results, Point]:
    """``samples``: outputs of the network itself at sampled weights."""
    flatten, unflatten = flattener(point.params)
    centre = flatten(point.params)
    outputs = jax.vmap(lambda d: point.model_fn(point.input, unflatten(centre + d)))(_deviations(point))
    return results | {"samples": outputs}, point


def _with_samples(results: Results, point: Point) -> tuple[Results, Point]:
    return (results, point) if "samples" in results else nonlin_samples(results, point)


def nonlin_pred_mean(results: Results, point: Point) -> tuple[Results, Point]:
    """``pred_mean``: of the samples."""
    results, point = _with_samples(results, point)
    return results | {"pred_mean": results["samples"].mean(0)}, point


def nonlin_pred_cov(results: Results, point: Point) -> tuple[Results, Point]:
    """``pred_cov``: of the samples, unbiased."""
    results, point = _with_samples(results, point)
    flat = results["samples"].reshape(results["samples"].shape[0], -1)
    centred = flat - flat.mean(0)
    return results | {"pred_cov": centred.T @ centred / max(flat.shape[0] - 1, 1)}, point


def nonlin_pred_var(results: Results, point: Point) -> tuple[Results, Point]:
    """``pred_var``: of the samples, unbiased."""
    results, point = _with_samples(results, point)
    samples = results["samples"]
    return results | {"pred_var": samples.var(0, ddof=min(1, samples.shape[0] - 1))}, point


def nonlin_pred_std(results: Results, point: Point) -> tuple[Results, Point]:
    """``pred_std``: its root."""
    if "pred_var" not in results:
        results, point = nonlin_pred_var(results, point)
    return results | {"pred_std": jnp.sqrt(results["pred_var"])}, point


def nonlin_mc_pred_act(results: Results, point: Point) -> tuple[Results, Point]:
    """``mc_pred_act``: the softmax averaged over samples."""
    results, point = _with_samples(results, point)
    return results | {"mc_pred_act": jax.nn.softmax(results["samples"], axis=-1).mean(0)}, point


def nonlin_special_pred_act(results: Results, point: Point) -> tuple[Results, Point]:
    """``special_pred_act``: the closed-form link on the samples' mean and covariance."""
    if "pred_mean" not in results:
        results, point = nonlin_pred_mean(results, point)
    if "pred_cov" not in results:
        results, point = nonlin_pred_cov(results, point)
    return results | {"special_pred_act": point.link(results["pred_mean"], results["pred_cov"])}, point


DEFAULT_LIN_FINALIZE_FNS: tuple[Step, ...] = (
    lin_setup,
    lin_pred_mean,
    lin_pred_cov,
    lin_pred_var,
    lin_pred_std,
    lin_samples,
)
DEFAULT_NONLIN_FINALIZE_FNS: tuple[Step, ...] = (
    nonlin_setup,
    nonlin_pred_mean,
    nonlin_pred_cov,
    nonlin_pred_var,
    nonlin_pred_std,
    nonlin_samples,
)


def set_lin_pushforward(
    model_fn: ModelFn,
    mean_params: Params,
    posterior_fn: PosteriorFn,
    prior_arguments: Mapping[str, Any],
    loss_scaling_factor: Any = 1.0,
    pushforward_fns: Sequence[Step] | None = None,
    *,
    key: Array | None = None,
    num_samples: int = 0,
    special_pred_type: str = "mean_field_0",
) -> Callable[[Any], Results]:
    """Make the linearised predictive of one example.

    Args:
        model_fn: ``model_fn(input, params)`` for one example.
        mean_params: The trained parameters.
        posterior_fn: From :func:`~jax_core.tutorial_api.posterior.create_posterior_fn`.
        prior_arguments: See :class:`~jax_core.tutorial_api.posterior.PosteriorFn`.
        loss_scaling_factor: Likewise.
        pushforward_fns: Steps, in order, :func:`lin_setup` first; by default mean, covariance, variance and standard
            deviation, and where samples are asked for by ``key`` and ``num_samples``, these too.
        key: Random key of the weight samples, for steps that sample.
        num_samples: How many; the same weights serve every input.
        special_pred_type: Name of the link of :func:`lin_special_pred_act`.

    Returns:
        ``input -> results``; compile and vmap it: ``jax.jit(jax.vmap(pushforward))``.
    """
    posterior = replace(posterior_fn(prior_arguments, loss_scaling_factor), mean=mean_params)
    if pushforward_fns is None:
        sampled = key is not None and num_samples > 0
        pushforward_fns = DEFAULT_LIN_FINALIZE_FNS if sampled else DEFAULT_LIN_FINALIZE_FNS[:-1]
    return _chain(model_fn, posterior, pushforward_fns, key, num_samples, special_pred_type)


def set_nonlin_pushforward(
    model_fn: ModelFn,
    mean_params: Params,
    posterior_fn: PosteriorFn,
    prior_arguments: Mapping[str, Any],
    loss_scaling_factor: Any = 1.0,
    pushforward_fns: Sequence[Step] = DEFAULT_NONLIN_FINALIZE_FNS,
    *,
    key: Array,
    num_samples: int = 100,
    special_pred_type: str = "mean_field_0",
) -> Callable[[Any], Results]:
    """Make the predictive of one example that pushes sampled weights through the network itself.

    Arguments and result are those of :func:`set_lin_pushforward`.
    """
    posterior = replace(posterior_fn(prior_arguments, loss_scaling_factor), mean=mean_params)
    return _chain(model_fn, posterior, pushforward_fns, key, num_samples, special_pred_type)


def _chain(
    model_fn: ModelFn,
    posterior: Posterior,
    steps: Sequence[Step],
    key: Array | None,
    num_samples: int,
    special_pred_type: str,
) -> Callable[[Any], Results]:
    sampled = key is not None and num_samples > 0
    deviations = posterior.deviations(key, num_samples) if key is not None and sampled else None
    link = link_by_name(special_pred_type)
    model = with_fast_convolutions(model_fn)

    @full_precision
    def pushforward(input: Any) -> Results:
        results: Results = {"map": model(input, posterior.mean)}
        point = Point(model, posterior.mean, posterior, input, deviations, link)
        for step in steps:
            results, point = step(results, point)
        return results

    return pushforward


def set_posterior_gp_kernel(
    model_fn: ModelFn,
    mean: Params,
    posterior_fn: PosteriorFn,
    prior_arguments: Mapping[str, Any],
    loss_scaling_factor: Any = 1.0,
) -> Callable[[Any, Any], Float[Array, "B C D E"]]:
    r"""The function-space posterior covariance between two batches, $J_{x} \Sigma J_{x'}^\top$.

    Returns:
        ``kernel(x1, x2)`` of shape ``(B1, C, B2, C)`` for batches of ``B1`` and ``B2`` examples; with one batch twice
        it is the joint covariance over that batch.
    """
    posterior = replace(posterior_fn(prior_arguments, loss_scaling_factor), mean=mean)

    @full_precision
    def kernel(x1: Any, x2: Any) -> Array:
        def rows(xs: Any) -> Array:
            return jax.vmap(lambda x: jacobian(with_fast_convolutions(model_fn), mean, x)[1])(xs)

        left, right = rows(x1), rows(x2)  # (B, C, P)
        scaled = jax.vmap(jax.vmap(posterior.cov_flat))(right)
        return jnp.einsum("acp,bdp->acbd", left, scaled)

    return kernel
