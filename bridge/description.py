"""How a model is approximated: options and hyperparameters, each validated when it is set."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from bridge import hyperparameters
from bridge.fitting import ReadOptions
from bridge.hyperparameters import Hyperparameters, Value, shown
from bridge.losses import Loss
from bridge.options import LinkName, one_of, whole
from bridge.parameter_order import ParameterOrder
from bridge.placement import device_of
from bridge.subset import Subset
from bridge.wide_types import InOwnTypes, is_wide
from jax_core.fit import PER_LAYER, FitOptions
from jax_core.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood


class Description(InOwnTypes, nn.Module):
    """A model and how it is to be approximated; what follows from a changed hyperparameter is the subclass's."""

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        options: FitOptions,
        reading: ReadOptions,
        subset: Subset,
        *,
        link_approx: LinkName,
        n_samples: int,
        enable_backprop: bool,
        seed: int,
        prior_precision: Any,
        prior_mean: Any,
        sigma_noise: Any,
        temperature: Any,
        logit_temperature: Any,
    ) -> None:
        """Validate and keep the description."""
        super().__init__()
        self.model, self.loss_fn, self.options, self.reading, self.seed = model, loss, options, reading, seed
        self.subset = subset.for_structure(options.structure)
        self.order = subset.order(model)
        self.link_approx, self.n_samples, self.enable_backprop = link_approx, n_samples, enable_backprop
        self._hyper = Hyperparameters(
            self.checked_prior(prior_precision),
            hyperparameters.prior_mean(prior_mean, self.order),
            self._noise(sigma_noise),
            hyperparameters.temperature(temperature),
            self._logits(logit_temperature),
        )

    def runs_wide(self) -> bool:
        """Whether the model is in float64."""
        return is_wide(self.model)

    @property
    def likelihood(self) -> str | Likelihood:
        """The likelihood by the name that it was given by, or of outputs with classes last."""
        return self.loss_fn.name or self.loss_fn.likelihood

    @likelihood.setter
    def likelihood(self, value: Any) -> None:
        raise AttributeError(
            f"likelihood={value!r}: the likelihood is part of the curvature. Construct a Laplace with it and fit that."
        )

    @property
    def hyperparameters(self) -> Hyperparameters:
        """All of them, in the order of ``model.parameters()``."""
        return self._hyper

    @property
    def link_approx(self) -> LinkName:
        """From Gaussian logits to probabilities."""
        return self._link_approx

    @link_approx.setter
    def link_approx(self, value: LinkName) -> None:
        one_of("link_approx", value, LinkName)
        self._link_approx: LinkName = value

    @property
    def n_samples(self) -> int:
        """Samples of the link ``"mc"`` and of ``pred_type="nn"``."""
        return self._n_samples

    @n_samples.setter
    def n_samples(self, value: int) -> None:
        whole("n_samples", value)
        self._n_samples = value

    @property
    def prior_precision(self) -> torch.Tensor:
        """A number, or one per tensor or parameter, as in ``model.parameters()``; setting it takes no new fit."""
        return self._as_weights(self._hyper.prior_precision)

    @prior_precision.setter
    def prior_precision(self, value: Any) -> None:
        self._change(prior_precision=self.checked_prior(value))

    @property
    def prior_mean(self) -> torch.Tensor:
        """The mean of the prior, like :attr:`prior_precision`; only the evidence depends on it."""
        return self._as_weights(self._hyper.prior_mean)

    @prior_mean.setter
    def prior_mean(self, value: Any) -> None:
        self._change(prior_mean=hyperparameters.prior_mean(value, self.order))

    @property
    def sigma_noise(self) -> torch.Tensor:
        """Standard deviation of a regression's noise; after ``fit`` one number for another takes no new fit."""
        return self._as_weights(self._hyper.sigma_noise)

    @sigma_noise.setter
    def sigma_noise(self, value: Any) -> None:
        noise = self._noise(value)
        if self.is_fitted and not (isinstance(noise, float | int) and isinstance(self._hyper.sigma_noise, float | int)):
            raise ValueError(
                "Noise that differs between outputs is part of the curvature. Construct a Laplace with this "
                "sigma_noise= and "
                "fit it."
            )
        self._change(sigma_noise=noise)

    @property
    def temperature(self) -> float:
        """Above one it flattens the likelihood."""
        return self._hyper.temperature

    @temperature.setter
    def temperature(self, value: Any) -> None:
        self._change(temperature=hyperparameters.temperature(value))

    def checked_prior(self, value: Any) -> Value:
        """A prior precision as the structure takes it.

        Raises:
            ValueError: If it does not, or the shape fits nothing.
        """
        prior = hyperparameters.prior_precision(value, self.order)
        if self.options.structure not in PER_LAYER or isinstance(prior, float | int):
            return prior
        try:
            return hyperparameters.per_tensor(prior, self.order)
        except ValueError as error:
            raise ValueError(
                f"hessian_structure={self.options.structure!r} takes one prior precision, or one per parameter tensor: "
                "a Kronecker product has no inverse beside other numbers. Precisions of single parameters go with "
                "'full', 'diag' and 'lowrank'."
            ) from error

    @property
    def logit_temperature(self) -> float:
        """What divides the predictive logits before the link; above one it makes predictions less confident."""
        return self._hyper.logit_temperature

    @logit_temperature.setter
    def logit_temperature(self, value: Any) -> None:
        self._change(logit_temperature=self._logits(value))

    def _logits(self, value: Any) -> float:
        found = hyperparameters.temperature(value, "logit_temperature")
        if found != 1.0 and not isinstance(self.loss_fn.likelihood, Categorical | Bernoulli):
            raise ValueError(
                f"logit_temperature={value!r} with the likelihood {type(self.loss_fn.likelihood).__name__}, which has "
                "no logits. Leave it out; a regression has sigma_noise."
            )
        return found

    def _as_weights(self, value: Value) -> torch.Tensor:
        """A hyperparameter where the weights are, in the type of results about them."""
        return shown(value).to(device_of(self.model), torch.float64 if self.runs_wide() else torch.float32)

    def _noise(self, value: Any) -> Value:
        noise = hyperparameters.sigma_noise(value)
        if not isinstance(self.loss_fn.likelihood, Gaussian) and not (isinstance(noise, float | int) and noise == 1.0):
            raise ValueError(
                f"sigma_noise={value!r} with the likelihood {type(self.loss_fn.likelihood).__name__}: noise belongs to "
                "regression. Leave it out, or use likelihood='regression'."
            )
        return noise

    @property
    def is_fitted(self) -> bool:
        """Whether there is a posterior."""
        return False

    def _change(self, **values: Any) -> None:
        self._hyper = dataclasses.replace(self._hyper, **values)

    def current_order(self, subset: Subset | None = None) -> ParameterOrder:
        """The parameters that a fit would cover now, of another subset if one is given.

        Raises:
            ValueError: If they are no longer those that a hyperparameter was given for, one number each.
        """
        order = (subset or self.subset).order(self.model)
        each = [n for n in ("prior_precision", "prior_mean") if not isinstance(getattr(self._hyper, n), float | int)]
        if order != self.order and each:
            raise ValueError(
                f"{each[0]} was given per parameter of {', '.join(self.order.names[:3])}, ..., and the fit covers "
                f"{', '.join(order.names[:3])}, ...: since then other parameters have requires_grad=True, or another "
                "layer is the last. Construct the Laplace anew, after freezing, or with last_layer_name=."
            )
        return order
