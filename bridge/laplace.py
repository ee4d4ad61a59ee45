"""The torch module that takes the place of a trained model and predicts with uncertainty."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import torch
from torch import nn

from bridge.dataloader import batch_check, passes_over, read_first
from bridge.losses import to_likelihood
from bridge.options import LinkName, one_of, positive, whole
from bridge.prediction import OneExample, checked_inputs, finisher, like, tensors
from bridge.tensors import to_jax
from bridge.tracing import TracedModel, trace
from jax_core import trees
from jax_core.curvature.data_loader_mv import Cache
from jax_core.fit import FitOptions, Fitted, Method, Structure, fit_curvature
from jax_core.likelihoods import Gaussian, Likelihood
from jax_core.lowrank.plan import Plan
from jax_core.posterior import Evidence, Posterior, gaussian_log_likelihood, log_marginal_likelihood, prior_vector
from jax_core.predictive import linearized_predictive
from jax_core.tuning import maximize_evidence, spectrum

Tracer = Literal["export", "torch2jax", "auto"]


class Laplace(nn.Module):
    r"""A Laplace approximation around a trained torch model, computed in JAX.

    The posterior over weights is $\mathcal N(\theta^*, (\tfrac{1}{\sigma^2 T} G + D)^{-1})$ with the generalised
    Gauss-Newton matrix $G$ of the training data and the prior precision $D$ (Daxberger et al., 2021,
    arXiv:2106.14806); predictions push it through the network linearised at $\theta^*$ (Immer et al., 2021,
    arXiv:2008.08400). The model itself is never changed.

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
            method: How a low rank is found: ``"lanczos"``, ``"nystrom"``, ``"gram"``, ``"lobpcg"``, or ``"auto"``, the
                cheapest by a cost model; :attr:`plan` says what it chose and why.
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
        self.options = FitOptions(
            structure=hessian_structure, method=method, rank=rank, passes=passes, progress=progress
        )
        self.prior_mean, self.sigma_noise, self.temperature = prior_mean, sigma_noise, temperature
        self.link_approx: LinkName = link_approx
        self.n_samples, self.seed = n_samples, seed
        self._tracer: Tracer = tracer
        self._cache: Cache = cache
        self._cache_bytes = cache_bytes
        self._traced: TracedModel | None = None
        self._fitted: Fitted | None = None
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
        first = read_first(train_loader)
        example = jax.tree.map(lambda leaf: leaf[:2], tensors(first.input))
        traced = trace(self.model, tuple(example) if isinstance(example, list) else example, tracer=self._tracer)
        # The traced weights may share memory with the module's, which a user may go on training.
        params, buffers = jax.tree.map(jnp.array, (traced.params, traced.buffers))
        traced = dataclasses.replace(traced, params=params, buffers=buffers)
        model_fn = OneExample.of(traced)
        one = jax.tree.map(lambda leaf: leaf[0], to_jax(example))
        output = jax.eval_shape(model_fn, one, traced.params)
        prior_vector(self._prior_precision, traced.params)
        self.options.check(trees.get_size(traced.params))
        passes = passes_over(
            train_loader,
            batch_check(first, output.shape, self.likelihood),
            cache=self._cache,
            cache_bytes=self._cache_bytes,
            progress=self.options.progress,
        )
        passes.preload()
        key = jax.random.key(self.seed)
        fitted = fit_curvature(
            model_fn, params, self.likelihood, passes, self.options, key=key, num_total_samples=num_total_samples
        )
        self._posterior = self._make_posterior(traced, fitted, self._prior_precision)
        self._traced, self._fitted = traced, fitted
        return self

    def _make_posterior(self, traced: TracedModel, fitted: Fitted, prior_precision: Any) -> Posterior:
        prior = prior_vector(prior_precision, traced.params)
        return Posterior.create(traced.params, fitted.curvature.rescale(self._scale), prior)

    @property
    def _scale(self) -> float:
        return 1.0 / (self.sigma_noise**2 * self.temperature)

    def _fit_result(self) -> tuple[TracedModel, Fitted, Posterior]:
        if self._traced is None or self._fitted is None or self._posterior is None:
            raise RuntimeError("This Laplace has no posterior yet. Call fit(train_loader) first.")
        return self._traced, self._fitted, self._posterior

    @property
    def posterior(self) -> Posterior:
        """The Gaussian over weights.

        Raises:
            RuntimeError: Before :meth:`fit`.
        """
        return self._fit_result()[2]

    @property
    def plan(self) -> Plan | None:
        """How the low rank was found and why so; ``None`` for the other structures.

        Raises:
            RuntimeError: Before :meth:`fit`.
        """
        return self._fit_result()[1].plan

    @property
    def prior_precision(self) -> Any:
        """The prior precision; setting it updates the posterior without a new fit."""
        return self._prior_precision

    @prior_precision.setter
    def prior_precision(self, value: Any) -> None:
        value = to_jax(value) if isinstance(value, torch.Tensor) else value
        if self._traced is not None and self._fitted is not None:
            self._posterior = self._make_posterior(self._traced, self._fitted, value)
        self._prior_precision = value

    def evidence(self) -> Evidence:
        """The log marginal likelihood in its three parts.

        Raises:
            RuntimeError: Before :meth:`fit`.
        """
        _, fitted, posterior = self._fit_result()
        log_likelihood: Any = -fitted.nll
        if isinstance(self.likelihood, Gaussian):
            log_likelihood = gaussian_log_likelihood(fitted.nll, fitted.num_outputs, self.sigma_noise)
        return log_marginal_likelihood(posterior, log_likelihood / self.temperature, prior_mean=self.prior_mean)

    def log_marginal_likelihood(self) -> float:
        """The Laplace approximation of the log evidence of the training data.

        Raises:
            RuntimeError: Before :meth:`fit`.
        """
        return float(self.evidence().total)

    def optimize_prior_precision(self, method: Literal["marglik"] = "marglik") -> float:
        """Choose the scalar prior precision that maximises the evidence, and use it from here on.

        Args:
            method: ``"marglik"``.

        Returns:
            The precision.

        Raises:
            RuntimeError: Before :meth:`fit`.
            ValueError: For another method.
        """
        one_of("method", method, Literal["marglik"])
        traced, fitted, _ = self._fit_result()
        leaves = jax.tree.leaves(traced.params)
        squared_norm = sum(float(jnp.sum((leaf - self.prior_mean) ** 2)) for leaf in leaves)
        eigenvalues = spectrum(fitted.curvature.rescale(self._scale))
        self.prior_precision = maximize_evidence(eigenvalues, trees.get_size(leaves), squared_norm).prior_precision
        return self.prior_precision

    def forward(self, x: Any, link_approx: LinkName | None = None, n_samples: int | None = None) -> Any:
        """Predict with the uncertainty of the weights.

        Args:
            x: A batch of inputs as the model takes them.
            link_approx: Another link than the one given at construction.
            n_samples: Another number of samples for ``"mc"``.

        Returns:
            For classification the probabilities ``(B, C)``, for several labels ``(B, L)``; for regression the mean
            ``(B, C)`` and the covariance ``(B, C, C)`` of the function, without the noise. On ``x``'s device and, if
            ``x`` is floating, in its dtype.

        Raises:
            RuntimeError: Before :meth:`fit`.
            ValueError: If the shape of ``x`` is not the traced one, or it holds NaN.
        """
        link = self.link_approx if link_approx is None else link_approx
        one_of("link_approx", link, LinkName)
        samples = self.n_samples if n_samples is None else n_samples
        whole("n_samples", samples)
        return self._predict(x, finisher(self.likelihood, link, jax.random.key(self.seed), samples))

    def predictive_distribution(self, x: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean ``(B, C)`` and exact covariance ``(B, C, C)`` of the network's outputs (the logits, if it classifies).

        Raises:
            RuntimeError: Before :meth:`fit`.
            ValueError: If the shape of ``x`` is not the traced one, or it holds NaN.
        """
        return self._predict(x, tuple)

    def _predict(self, x: Any, finish: Any) -> Any:
        traced, _, posterior = self._fit_result()
        batch = tensors(x)
        predict = linearized_predictive(OneExample.of(traced), posterior, finish)
        return like(jax.tree.leaves(batch)[0], predict(checked_inputs(traced, batch)))

    def extra_repr(self) -> str:
        """What ``print`` shows beside the model."""
        o = self.options
        shape = f"{o.structure}, method={o.method}, rank={o.rank}" if o.structure == "lowrank" else o.structure
        state = "not fitted" if self._fitted is None else f"fitted on {self._fitted.num_samples} samples"
        return f"{type(self.likelihood).__name__}, {shape}, prior_precision={self.prior_precision}, {state}"
