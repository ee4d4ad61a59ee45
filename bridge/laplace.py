"""The torch module that takes the place of a trained model and predicts with uncertainty."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import torch
from torch import nn

from bridge.dataloader import read_first
from bridge.fitting import FittedModel, ReadOptions, Tracer, checked_passes, fit_module
from bridge.losses import to_likelihood
from bridge.options import LinkName, PredictionType, one_of, positive, whole
from bridge.prediction import predict_batch, prediction_from_gaussian, prediction_from_samples, predictive_for
from bridge.tensors import to_free_jax
from bridge.tuning import PriorSearch, TuningMethod, check_arguments, score_of
from jax_core.data.passes import Cache
from jax_core.fit import FitOptions, Fitted, Method, Structure
from jax_core.likelihoods import Likelihood
from jax_core.lowrank.plan import Plan
from jax_core.posterior import Evidence, Posterior, log_marginal_likelihood
from jax_core.predictive import joint_predictive, linearized_predictive, sampled_predictive
from jax_core.tuning import Objective, Score, Tuned


class Laplace(nn.Module):
    r"""A Laplace approximation around a trained torch model, computed in JAX.

    The posterior over weights is $\mathcal N(\theta^*, (\tfrac{1}{\sigma^2 T} G + D)^{-1})$ with the generalised
    Gauss-Newton matrix $G$ of the training data and the prior precision $D$ (Daxberger et al., 2021,
    arXiv:2106.14806); predictions push it through the network linearised at $\theta^*$ (Immer et al., 2021,
    arXiv:2008.08400). The model itself is never changed.

    Everything but :meth:`fit` raises ``RuntimeError`` before it.

    Example:
        >>> la = Laplace(model, likelihood="classification", rank=100)
        >>> la.fit(train_loader)
        >>> la.optimize_prior_precision()
        >>> probabilities = la(x)
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: str | nn.Module | Likelihood = "classification",
        *,
        hessian_structure: Structure = "lowrank",
        method: Method = "auto",
        rank: int = 100,
        passes: int = 1,
        prior_precision: Any = 1.0,
        prior_mean: float = 0.0,
        sigma_noise: float = 1.0,
        temperature: float = 1.0,
        link_approx: LinkName = "probit",
        n_samples: int = 100,
        tracer: Tracer = "export",
        cache: Cache = "auto",
        cache_bytes: int = 2**31,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        """Describe the approximation; nothing is computed before :meth:`fit`.

        Args:
            model: A trained module.
            likelihood: ``"classification"``, ``"regression"``, ``"multilabel"``, a torch loss module such as
                ``nn.CrossEntropyLoss(weight=...)``, or a likelihood of ``jax_core``.
            hessian_structure: ``"lowrank"``, ``"full"`` or ``"diag"``.
            method: How a low rank is found: ``"lanczos"``, ``"block_lanczos"``, ``"nystrom"``, ``"gram"``,
                ``"lobpcg"``, or ``"auto"``, the cheapest by a cost model; :attr:`plan` says what it chose and why.
            rank: Eigenpairs of a low rank.
            passes: Passes over the data of ``"nystrom"``.
            prior_precision: One number, one per parameter tensor, or one per parameter.
            prior_mean: Of the weights.
            sigma_noise: Standard deviation of a regression's noise.
            temperature: Above one it flattens the likelihood.
            link_approx: From Gaussian logits to probabilities: ``"probit"``, ``"mc"``, ``"bridge"``,
                ``"bridge_norm"``, ``"mean_field_0"``, ``"mean_field_1"`` or ``"mean_field_2"``.
            n_samples: Samples of ``"mc"``.
            tracer: How the model becomes a JAX function, see :func:`bridge.trace`.
            cache: Keep the data in memory: ``"auto"`` within ``cache_bytes``, ``"memory"`` always, ``"none"`` never.
            cache_bytes: The budget of ``"auto"``.
            seed: Of everything random.
            progress: Show progress bars.

        Raises:
            ValueError: For an option out of its range, named.
            TypeError: If ``model`` is not a module.
        """
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is a {type(model).__name__}. Give a torch.nn.Module.")
        one_of("hessian_structure", hessian_structure, Structure)
        one_of("method", method, Method)
        one_of("link_approx", link_approx, LinkName)
        one_of("cache", cache, Cache)
        one_of("tracer", tracer, Tracer)
        for name, number in (("sigma_noise", sigma_noise), ("temperature", temperature)):
            positive(name, number)
        for name, count in (("rank", rank), ("passes", passes), ("n_samples", n_samples)):
            whole(name, count)
        self.model = model
        self.likelihood = to_likelihood(likelihood)
        self._reading = ReadOptions(tracer=tracer, cache=cache, cache_bytes=cache_bytes, progress=progress)
        how = {"structure": hessian_structure, "method": method, "rank": rank, "passes": passes}
        self.options = FitOptions(**how, progress=progress)
        self.prior_mean, self.sigma_noise, self.temperature = prior_mean, sigma_noise, temperature
        self.link_approx: LinkName = link_approx
        self.n_samples, self.seed = n_samples, seed
        self._fit: FittedModel | None = None
        self._posterior: Posterior | None = None
        self._prior_precision = prior_precision

    def fit(self, train_loader: Iterable[Any], *, num_total_samples: int | None = None) -> Laplace:
        """Trace the model and reduce its curvature over the loader.

        The loader is read once, into memory if it fits. Nothing of an earlier fit is lost if this one fails.

        Args:
            train_loader: Yields ``(input, target)`` pairs or mappings with ``input`` and ``target``, of torch tensors
                or numpy arrays.
            num_total_samples: The size of the training set, if the loader shows a subset of it.

        Returns:
            This object.

        Raises:
            ValueError: If the loader is empty, a batch holds NaN or targets that do not fit, shapes differ between
                batches, or the rank exceeds the number of parameters.
            TypeError: If targets or batches are of the wrong type.
        """
        if num_total_samples is not None:
            whole("num_total_samples", num_total_samples)
        what = (self.model, train_loader, self.likelihood, self.options, self._reading)
        how = {"seed": self.seed, "num_total_samples": num_total_samples}
        prior = self._prior_precision
        return self._adopt(fit_module(*what, prior_precision=prior, **how), prior)

    def _adopt(self, fit: FittedModel, prior: Any) -> Laplace:
        self._posterior, self._fit, self._prior_precision = fit.posterior(prior, self._scale), fit, prior
        return self

    @property
    def _scale(self) -> float:
        return 1.0 / (self.sigma_noise**2 * self.temperature)

    def _fit_result(self) -> tuple[FittedModel, Posterior]:
        if self._fit is None or self._posterior is None:
            raise RuntimeError("This Laplace has no posterior yet. Call fit(train_loader) first.")
        return self._fit, self._posterior

    @property
    def posterior(self) -> Posterior:
        """The Gaussian over weights."""
        return self._fit_result()[1]

    @property
    def fitted(self) -> Fitted:
        """The reduced curvature and what it was computed from."""
        return self._fit_result()[0].fitted

    @property
    def plan(self) -> Plan | None:
        """How the low rank was found and why so; ``None`` for the other structures."""
        return self.fitted.plan

    @property
    def prior_precision(self) -> Any:
        """The prior precision; setting it updates the posterior without a new fit."""
        return self._prior_precision

    @prior_precision.setter
    def prior_precision(self, value: Any) -> None:
        value = to_free_jax(value) if isinstance(value, torch.Tensor) else value
        if self._fit is not None:
            self._adopt(self._fit, value)
        self._prior_precision = value

    def evidence(self) -> Evidence:
        """The log marginal likelihood in its three parts."""
        fit, posterior = self._fit_result()
        log_likelihood = fit.fitted.log_likelihood(self.likelihood, self.sigma_noise)
        return log_marginal_likelihood(posterior, log_likelihood / self.temperature, prior_mean=self.prior_mean)

    def log_marginal_likelihood(self) -> float:
        """The Laplace approximation of the log evidence of the training data."""
        return float(self.evidence().total)

    def optimize_prior_precision(
        self,
        method: TuningMethod = "marglik",
        *,
        val_loader: Iterable[Any] | None = None,
        objective: Objective | Score = "nll",
        grid: Any = None,
        layerwise: bool = False,
    ) -> Tuned:
        """Choose the prior precision, and use it from here on; nothing changes if this fails.

        Args:
            method: ``"marglik"``, the largest evidence, needs no data; ``"gridsearch"``, the smallest ``objective``
                on held-out data over a grid, warns if that lies at an edge.
            val_loader: Held-out data for ``"gridsearch"``, batches as in :meth:`fit`.
            objective: For ``"gridsearch"``: ``"nll"``, ``"ece"`` (classification), ``"chi2"`` (regression) or a
                function ``(predictions, targets) -> loss`` of arrays.
            grid: Precisions to try; 21 from 1e-4 to 1e6 by default.
            layerwise: With ``"marglik"``, one precision per parameter tensor, by gradient ascent (needs optax).

        Returns:
            The precision, what it scored, and the whole curve.

        Raises:
            RuntimeError: Before :meth:`fit`.
            ValueError: For another method, arguments that do not go with it, or data that do not fit the model.
        """
        fit, _ = self._fit_result()
        search = PriorSearch(fit.model_fn, fit.params, fit.fitted.curvature.rescale(self._scale))
        check_arguments(method, val_loader=val_loader, grid=grid, layerwise=layerwise)
        if val_loader is None:
            tuned = search.by_evidence(self.prior_mean, layerwise=layerwise, progress=self.options.progress)
        else:
            finish = prediction_from_gaussian(
                self.likelihood, self.link_approx, jax.random.key(self.seed), self.n_samples
            )
            score = score_of(objective, self.likelihood, self.sigma_noise)
            batches = checked_passes(val_loader, read_first(val_loader), fit.traced, self.likelihood, self._reading)
            tuned = search.by_grid(batches, score, finish, grid)
        self.prior_precision = tuned.prior_precision
        return tuned

    def forward(
        self,
        x: Any,
        link_approx: LinkName | None = None,
        n_samples: int | None = None,
        *,
        pred_type: PredictionType = "glm",
    ) -> Any:
        """Predict with the uncertainty of the weights.

        Args:
            x: A batch of inputs as the model takes them.
            link_approx: Another link than the one given at construction.
            n_samples: Another number of samples for ``"mc"`` and ``pred_type="nn"``.
            pred_type: ``"glm"``, the network linearised at its weights, exactly; or ``"nn"``, the network itself at
                sampled weights, whose predictions are averaged.

        Returns:
            For classification the probabilities ``(B, C)``, for several labels ``(B, L)``; for regression the mean
            ``(B, C)`` and the covariance ``(B, C, C)`` of the function, without the noise. On ``x``'s device and, if
            ``x`` is floating, in its dtype.

        Raises:
            RuntimeError: Before :meth:`fit`.
            ValueError: For an unknown option, or if the shape of ``x`` is not the traced one, or it holds NaN.
        """
        link = self.link_approx if link_approx is None else link_approx
        one_of("link_approx", link, LinkName)
        one_of("pred_type", pred_type, PredictionType)
        samples = self.n_samples if n_samples is None else n_samples
        whole("n_samples", samples)
        key = jax.random.key(self.seed)
        if pred_type == "glm":
            predictive = predictive_for(link, self.likelihood, self._fit_result()[0].jacobian_bytes)
            return self._predict(x, predictive, finish=prediction_from_gaussian(self.likelihood, link, key, samples))
        average = prediction_from_samples(self.likelihood)
        return self._predict(x, sampled_predictive, average, key=key, num_samples=samples)

    def predictive_distribution(self, x: Any, *, joint: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and exact covariance of the linearised network's outputs (the logits, if it classifies).

        Args:
            x: A batch of inputs.
            joint: Whether outputs of different examples are related too.

        Returns:
            The mean ``(B, C)``, and the covariance ``(B, C, C)`` or, if joint, ``(B, C, B, C)``.

        Raises:
            RuntimeError: Before :meth:`fit`.
            ValueError: If the shape of ``x`` is not the traced one, or it holds NaN.
        """
        return self._predict(x, joint_predictive if joint else linearized_predictive, tuple)

    def _predict(self, x: Any, predictive: Any, last: Any = None, **options: Any) -> Any:
        fit, posterior = self._fit_result()
        return predict_batch(fit.traced, x, lambda model_fn: predictive(model_fn, posterior, **options), last)

    def extra_repr(self) -> str:
        """What ``print`` shows beside the model."""
        o = self.options
        shape = f"{o.structure}, method={o.method}, rank={o.rank}" if o.structure == "lowrank" else o.structure
        state = "not fitted" if self._fit is None else f"fitted on {self._fit.fitted.num_samples} samples"
        return f"{type(self.likelihood).__name__}, {shape}, prior_precision={self.prior_precision}, {state}"
