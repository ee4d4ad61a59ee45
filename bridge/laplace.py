"""The torch module that takes the place of a trained model and predicts with uncertainty."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import torch
from torch import nn

from bridge.dataloader import ToBatch
from bridge.fitting import ReadOptions, Tracer, fit_module
from bridge.keeping import KeptLaplace
from bridge.losses import to_loss
from bridge.options import LinkName, PredictionType, one_of, whole
from bridge.predictives import Request, distribution, predict
from bridge.subset import Subset, WeightSubset
from bridge.tuning import TuningMethod, chosen_method, tune
from jax_core.data.passes import Cache
from jax_core.fit import FitOptions, Method, Structure
from jax_core.likelihoods import Likelihood
from jax_core.tuning import Objective, Score, Tuned


class Laplace(KeptLaplace):
    r"""A Laplace approximation around a trained torch model, computed in JAX.

    The posterior over weights is $\mathcal N(\theta^*, (\tfrac{1}{\sigma^2 T} G + D)^{-1})$ with the generalised
    Gauss-Newton matrix $G$ of the training data and the prior precision $D$ (Daxberger et al., 2021,
    arXiv:2106.14806); predictions push it through the network linearised at $\theta^*$ (Immer et al., 2021,
    arXiv:2008.08400). The model itself is never changed.

    Everything but :meth:`fit` raises ``RuntimeError`` before it, and once the model's weights have changed since: a
    posterior belongs to the weights that it was fitted at.

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
        subset_of_weights: WeightSubset = "all",
        hessian_structure: Structure | None = None,
        *,
        last_layer_name: str | None = None,
        method: Method = "auto",
        rank: int = 100,
        passes: int = 1,
        prior_precision: Any = 1.0,
        prior_mean: Any = 0.0,
        sigma_noise: Any = 1.0,
        temperature: Any = 1.0,
        logit_temperature: Any = 1.0,
        link_approx: LinkName = "auto",
        n_samples: int = 100,
        tracer: Tracer = "export",
        cache: Cache = "auto",
        cache_bytes: int = 2**31,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        """Describe the approximation; nothing is computed before :meth:`fit`.

        Args:
            model: A trained module; one in 16 bits is worked on in float32.
            likelihood: ``"classification"`` (classes on the last axis of the outputs), ``"regression"``,
                ``"multilabel"``, a torch loss module such as ``nn.CrossEntropyLoss(weight=...)`` (classes on axis 1,
                as torch has them), or a likelihood of ``jax_core``.
            subset_of_weights: Of the parameters with ``requires_grad=True``, ``"all"`` or those of the ``"last_layer"``
                alone.
            hessian_structure: ``"kron_lowrank"``, a low rank across the layers beside the exact diagonal of the rest in
                Kronecker coordinates, which is the default; ``"lowrank"`` alone, the default where a ``method`` is
                given; ``"kron"``, ``"ekfac"``, ``"full"`` or ``"diag"``.
            last_layer_name: Of the ``"last_layer"``; by default the module through whose output alone parameters reach
                the model's, found on the first batch (before, it is taken to be the one registered last).
            method: How a low rank is found: ``"nystrom"``, ``"gram"``, for ``"lowrank"`` also ``"lanczos"``,
                ``"block_lanczos"``, ``"lobpcg"``; ``"auto"``, the cheapest by a cost model; see :attr:`plan`.
            rank: Eigenpairs of a low rank.
            passes: Passes over the data of ``"nystrom"``.
            prior_precision: One number; one per parameter tensor or (but with Kronecker blocks) one per parameter, in
                the order of ``model.parameters()``; or a mapping from the parameters' names.
            prior_mean: Of the weights, given likewise.
            sigma_noise: Standard deviation of a regression's noise, a number or one per output.
            temperature: Above one it flattens the likelihood behind the posterior.
            logit_temperature: Divides the Gaussian logits before the link (Guo et al., 2017, arXiv:1706.04599).
            link_approx: From Gaussian logits to probabilities: ``"probit"``, ``"mc"``, ``"bridge"``,
                ``"bridge_norm"``, ``"mean_field_0"``, ``"mean_field_1"``, ``"mean_field_2"``; ``"auto"`` is the last,
                or ``"probit"`` where a Jacobian is too large for a covariance.
            n_samples: Samples of ``"mc"``.
            tracer: How the model becomes a JAX function, see :func:`bridge.trace`.
            cache: Keep the data in memory: ``"auto"`` within ``cache_bytes``, ``"memory"`` always, ``"none"`` never.
            cache_bytes: For that.
            seed: Of everything random.
            progress: Show progress bars.

        Raises:
            ValueError: For an option out of its range, named, or a model without trainable parameters.
            TypeError: If ``model`` is not a module.
        """
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is a {type(model).__name__}. Give a torch.nn.Module.")
        one_of("method", method, Method)
        if hessian_structure is None:
            hessian_structure = "kron_lowrank" if method == "auto" else "lowrank"
        one_of("hessian_structure", hessian_structure, Structure)
        one_of("cache", cache, Cache)
        one_of("tracer", tracer, Tracer)
        for name, count in (("rank", rank), ("passes", passes), ("cache_bytes", cache_bytes)):
            whole(name, count)
        how = {"structure": hessian_structure, "method": method, "rank": rank, "passes": passes}
        super().__init__(
            model,
            to_loss(likelihood),
            FitOptions(**how, progress=progress),
            ReadOptions(tracer=tracer, cache=cache, cache_bytes=cache_bytes, progress=progress),
            Subset.checked(subset_of_weights, last_layer_name, model),
            link_approx=link_approx,
            n_samples=n_samples,
            seed=seed,
            prior_precision=prior_precision,
            prior_mean=prior_mean,
            sigma_noise=sigma_noise,
            temperature=temperature,
            logit_temperature=logit_temperature,
        )

    def fit(
        self,
        train_loader: Iterable[Any],
        *,
        num_total_samples: int | None = None,
        to_batch: ToBatch | None = None,
        checkpoint: str | Path | None = None,
    ) -> Laplace:
        """Trace the model and reduce its curvature over the loader.

        The loader is read once, into memory if it fits. If this fails, nothing of an earlier fit is lost.

        Args:
            train_loader: Yields ``(input, target)``, ``(a, b, ..., target)``, or mappings with ``input`` and ``target``
                or with ``labels`` beside the model's keyword inputs; of torch tensors or numpy arrays.
            num_total_samples: The size of the training set, if the loader shows a subset of it.
            to_batch: From what the loader yields to an ``(input, target)`` pair, where it yields something else.
            checkpoint: A folder for the state of this fit. If the process is killed, the same call goes on from there;
                its loader should show the same batches again (``shuffle=False``, or a seeded generator).

        Returns:
            This object.

        Raises:
            ValueError: If the loader is empty, a batch holds NaN or targets that do not fit, shapes differ between
                batches, the rank exceeds the number of parameters, or no single layer is the last and one was asked
                for.
            TypeError: If targets or batches are of the wrong type.
            TraceError: If the model cannot be traced, or samples of a batch see one another.
            MismatchError: If the traced model does not give what torch gives.
        """
        if num_total_samples is not None:
            whole("num_total_samples", num_total_samples)
        self.current_order()
        what = (self.model, train_loader, self.loss, self.options, self.reading, self.hyperparameters, self.subset)
        read = {"to_batch": to_batch, "checkpoint": checkpoint}
        try:
            fit = fit_module(*what, seed=self.seed, num_total_samples=num_total_samples, before=self._fit, **read)
        except KeyboardInterrupt as stop:
            stop.add_note("The fit was interrupted; this Laplace is as it was before.")
            raise
        self.adopt(fit, self.hyperparameters)
        return self

    def optimize_prior_precision(
        self,
        method: TuningMethod | None = None,
        *,
        val_loader: Iterable[Any] | None = None,
        objective: Objective | Score = "nll",
        grid: Any = None,
        layerwise: bool = False,
        to_batch: ToBatch | None = None,
    ) -> Tuned:
        r"""Choose the prior precision and what goes with it, and use them from here on; nothing changes if this fails.

        By default (``"joint"``) the prior precision is chosen together with :attr:`logit_temperature`, or with
        :attr:`sigma_noise` of a regression where that is one number. Temperature scaling alone is among the choices.

        - With ``val_loader``: the smallest precision, the most uncertainty, whose held-out likelihood is neither below
          temperature scaling's nor worse than the best by a one-sided paired test at five per cent.
        - Without, classification and several labels: likewise by the likelihood of some training samples less what the
          network owes to having seen them (Efron, 2004, doi:10.1198/016214504000000692), within one nat on one of them.
        - Without, regression: by the largest evidence over precision and noise.

        :meth:`report` says what was chosen by what, beside the figures of the network and of temperature scaling.

        Args:
            method: ``"joint"``; ``"marglik"``, the largest evidence over the precision alone, which warns where its
                predictions seem worse than the network's; ``"gridsearch"``, the smallest ``objective`` on held-out
                data over a grid of precisions, which warns if that lies at an edge. By default what the other
                arguments ask for, and ``"joint"`` if they leave it open; ``"marglik"`` for a likelihood without
                predictive density.
            val_loader: Held-out data, batches as in :meth:`fit`.
            objective: For ``"gridsearch"``: ``"nll"``, ``"ece"`` (classification), ``"chi2"`` (regression) or a
                function ``(predictions, targets) -> loss`` of arrays, predictions in the model's shape.
            grid: Precisions to try; for ``"gridsearch"`` 21 from 1e-4 to 1e6, for ``"joint"`` 73 from 0.1 to 1e5.
            layerwise: With ``"marglik"``, one precision per parameter tensor, by gradient ascent (needs optax).
            to_batch: As in :meth:`fit`.

        Returns:
            What was chosen, what it scored, and the whole curve; per tensor in the order of ``model.parameters()``.

        Raises:
            RuntimeError: Before :meth:`fit`.
            ValueError: For another method, arguments that do not go with it, or data that do not fit the model.
        """
        self.fit_result()
        given = {"val_loader": val_loader, "grid": grid, "layerwise": layerwise}
        chosen = chosen_method(method, self.likelihood, objective, **given)
        tuned = tune(self, chosen, val_loader, objective, grid, layerwise=layerwise, to_batch=to_batch)
        self.take(tuned)
        return tuned

    def forward(
        self,
        x: Any,
        link_approx: LinkName | None = None,
        n_samples: int | None = None,
        *,
        pred_type: PredictionType = "glm",
        diagonal_output: bool = False,
    ) -> Any:
        """Predict with the uncertainty of the weights.

        Args:
            x: A batch of inputs as the model takes them.
            link_approx: Another link than the one given at construction.
            n_samples: Another number of samples for ``"mc"`` and ``pred_type="nn"``.
            pred_type: ``"glm"``, the network linearised at its weights, exactly; or ``"nn"``, the network itself at
                sampled weights, whose predictions are averaged.
            diagonal_output: For regression: variances of single outputs in place of their covariance, as is done by
                itself (with a warning) where the covariance would take more than a gigabyte.

        Returns:
            Probabilities for classification and several labels, in the shape of ``model(x)``; for regression the mean
            in that shape and the covariance ``(B, D, D)`` over a sample's ``D`` flattened outputs (or the variances,
            in the shape of ``model(x)``) of the function, without the noise. On ``x``'s device and, if ``x`` is
            floating, in its dtype. Not differentiable by torch.

        Raises:
            RuntimeError: Before :meth:`fit`, or if the model's weights have changed since.
            ValueError: For an unknown option, or if the shape of ``x`` is not the traced one, or it holds NaN.
        """
        link = self.link_approx if link_approx is None else link_approx
        one_of("link_approx", link, LinkName)
        one_of("pred_type", pred_type, PredictionType)
        samples = self.n_samples if n_samples is None else n_samples
        whole("n_samples", samples)
        _, posterior = self.fit_result()
        key = jax.random.key(self.seed)
        request = Request(pred_type, link, samples, key, diagonal_output, self.logit_temperature)
        ready = self.ready_for(x)
        return ready.shown(predict(ready.fit, posterior, ready.batch, request))

    def predictive_distribution(self, x: Any, *, joint: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and exact covariance of the linearised network's outputs (the logits, if it classifies).

        They are not divided by :attr:`logit_temperature`, which belongs to the step from logits to probabilities.

        Args:
            x: A batch of inputs.
            joint: Whether outputs of different examples are related too.

        Returns:
            The mean in the shape of ``model(x)``, and over a sample's ``D`` flattened outputs the covariance
            ``(B, D, D)`` or, if joint, ``(B, D, B, D)``.

        Raises:
            RuntimeError: Before :meth:`fit`, or if the model's weights have changed since.
            ValueError: If the shape of ``x`` is not the traced one, or it holds NaN.
        """
        ready, (_, posterior) = self.ready_for(x), self.fit_result()
        return ready.shown(distribution(ready.fit, posterior, ready.batch, joint=joint))

    def extra_repr(self) -> str:
        """What ``print`` shows beside the model."""
        o = self.options
        shape = f"{o.structure}, method={o.method}, rank={o.rank}" if "lowrank" in o.structure else o.structure
        covered = "" if self.subset.kind == "all" else f"last_layer={self.subset.name or 'to be found'}, "
        state = f"fitted on {self._fit.fitted.num_samples} samples" if self._fit else "not fitted"
        divided = "" if self.logit_temperature == 1.0 else f", logit_temperature={self.logit_temperature:.4g}"
        prior = f"prior_precision={self.prior_precision}{divided}"
        return f"{type(self.likelihood).__name__}, {shape}, {covered}{prior}, {state}"
