"""What a Laplace object is: a model, how it is approximated, its hyperparameters and, once fitted, its posterior."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from bridge import hyperparameters
from bridge.against_torch import compare_outputs
from bridge.at_length import Ready, ready_for
from bridge.description import Description
from bridge.fitting import FittedModel, with_noise
from bridge.hyperparameters import Hyperparameters, in_core, per_parameter
from bridge.losses import Loss
from bridge.outputs import OutputLayout
from bridge.precision import in_float32
from bridge.prediction import checked_inputs
from bridge.tracing.checks import unwrap
from jax_core.fitted import Fitted
from jax_core.lowrank.plan import Plan
from jax_core.posterior import Evidence, Posterior, log_marginal_likelihood
from jax_core.tuning import Report, Tuned


class LaplaceState(Description):
    """The state of :class:`~bridge.laplace.Laplace`, each part validated when it is set.

    The posterior belongs to the weights that the model had at ``fit``: whatever needs it raises ``RuntimeError`` before
    ``fit``, and once the weights have changed since.
    """

    def __init__(self, *description: Any, **hyperparameters: Any) -> None:
        """Keep the description, see :class:`~bridge.description.Description`; there is no posterior yet."""
        super().__init__(*description, **hyperparameters)
        self._fit: FittedModel | None = None
        self._posterior: Posterior | None = None
        self._verified = True
        self._report: Report | None = None

    def runs_wide(self) -> bool:
        """Whether the fit, or before it the model, is in float64, for which JAX's 64-bit types are needed."""
        fit = self.__dict__.get("_fit")
        return super().runs_wide() if fit is None else fit.is_wide

    def loss_for(self, layout: OutputLayout, hyper: Hyperparameters) -> Loss:
        """The loss with the noise per output in it."""
        return with_noise(self.loss_fn, hyper.sigma_noise, layout)

    def _change(self, **values: Any) -> None:
        hyper = dataclasses.replace(self._hyper, **values)
        if self._fit is not None:
            self._posterior = self._fit.posterior(hyper.prior_precision, hyper.scale, self.order)
        self._hyper, self._report = hyper, None

    def take(self, tuned: Tuned) -> None:
        """Use what a search has found."""
        found = {"prior_precision": hyperparameters.prior_precision(tuned.prior_precision, self.order)}
        for name in ("logit_temperature", "sigma_noise"):
            value = getattr(tuned, name)
            found |= {} if value is None else {name: value}
        self._change(**found)
        self._report = tuned.report

    def report(self) -> Report:
        """What the latest search has chosen by what, beside the figures of the network; made to be printed.

        Raises:
            RuntimeError: If nothing was tuned, or a hyperparameter was set since.
        """
        if self._report is None:
            raise RuntimeError("Nothing is tuned, or was set by hand since. Call optimize_prior_precision() first.")
        return self._report

    def adopt(self, fit: FittedModel, hyper: Hyperparameters, *, verified: bool = True) -> None:
        """Take a fit for one's own; ``verified`` says whether its trace was compared with torch."""
        self.order, self.subset = self.current_order(fit.subset), fit.subset
        self._posterior = fit.posterior(hyper.prior_precision, hyper.scale, self.order)
        self._fit, self._hyper, self._verified, self._report = fit, hyper, verified, None

    @property
    def is_fitted(self) -> bool:
        """Whether there is a posterior."""
        return self._fit is not None

    def fit_result(self, *, check_weights: bool = True) -> tuple[FittedModel, Posterior]:
        """The fit and the posterior.

        Raises:
            RuntimeError: Before ``fit``, or if the model's weights have changed since.
        """
        self._take_up()
        if self._fit is None or self._posterior is None:
            raise RuntimeError("This Laplace has no posterior yet. Call fit(train_loader) first.")
        if check_weights:
            moved = self.moved_weights()
            if moved:
                raise RuntimeError(
                    f"The model's weights have changed since fit "
                    f"({', '.join(moved[:3])}{', ...' if moved[3:] else ''}), and "
                    "the posterior belongs to the old ones. Call fit(train_loader) again, or load the state dict that "
                    "was in force at fit."
                )
        return self._fit, self._posterior

    def moved_weights(self) -> list[str]:
        """Names of the weights that are no longer those of the fit."""
        if self._fit is None:
            return []
        traced = self._fit.traced
        return self._fit.watch.moved(self.model, {**traced.params, **traced.buffers})

    def _take_up(self) -> None:
        """Take up a posterior that is at hand only as bytes."""

    def ready_for(self, x: Any) -> Ready:
        """What a prediction for a batch of inputs is made with, as :func:`~bridge.at_length.ready_for` says.

        Raises:
            MismatchError: As :meth:`verify_on` does.
        """
        fit = self.fit_result()[0]
        ready = ready_for(self.model, fit, x)
        if ready.fit is fit:
            self.verify_on(ready.batch)
        return ready

    def verify_on(self, x: Any) -> None:
        """Compare a trace that was made without data with torch, on the first batch that it is to predict.

        Raises:
            MismatchError: If they differ.
        """
        if self._verified:
            return
        fit = self.fit_result()[0]
        network, inputs = in_float32(unwrap(self.model)), checked_inputs(fit.traced, x)
        compare_outputs(network, fit.model_fn, fit.params, inputs, fit.template)
        self._verified = True

    @property
    def posterior(self) -> Posterior:
        """The Gaussian over weights, in JAX's order of parameters (sorted names)."""
        return self.fit_result()[1]

    @property
    def fitted(self) -> Fitted:
        """The reduced curvature and what it was computed from."""
        return self.fit_result()[0].fitted

    @property
    def plan(self) -> Plan | None:
        """How the low rank was found and why so; ``None`` for the other structures."""
        return self.fitted.plan

    def evidence(self) -> Evidence:
        """The log marginal likelihood in its three parts."""
        fit, posterior = self.fit_result()
        noise = self._hyper.sigma_noise
        log_likelihood = fit.fitted.log_likelihood(
            fit.loss.likelihood, noise if isinstance(noise, float | int) else 1.0
        )
        found = log_marginal_likelihood(posterior, log_likelihood / self.temperature, prior_mean=self.core_prior_mean)
        return jax.device_get(found)  # numpy adds its parts in their own precision, wherever they are looked at

    @property
    def core_prior_mean(self) -> Any:
        """The mean of the prior, a number or one per parameter, in the core's order."""
        return in_core(per_parameter(self._hyper.prior_mean, self.order), self.order.to_core)
