"""The torch module that takes the place of a trained model and predicts with uncertainty."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from bridge.dataloader import ToBatch
from bridge.fitting import ReadOptions, Tracer, fit_module
from bridge.hyperparameters import shown
from bridge.losses import to_loss
from bridge.options import LinkName, one_of, spelled, whole
from bridge.peer_options import check_structure, curvature_of, kfac_approx_of, without_idle_options
from bridge.subset import Subset, WeightSubset
from bridge.tunable import TunableLaplace
from bridge.wide_types import is_wide, wide_types
from jax_core.curvature.fisher_likelihood import Curvature
from jax_core.data.passes import Cache
from jax_core.fit import FitOptions, Method, Structure
from jax_core.kronecker import KfacApprox
from jax_core.likelihoods import Likelihood


class Laplace(TunableLaplace):
    r"""A Laplace approximation around a trained torch model, computed in JAX.

    The posterior over weights is $\mathcal N(\theta^*, (\tfrac{1}{\sigma^2 T} G + D)^{-1})$ with the generalised
    Gauss-Newton matrix $G$ of the training data and the prior precision $D$ (Daxberger et al., 2021,
    arXiv:2106.14806); predictions push it through the network linearised at $\theta^*$ (Immer et al., 2021,
    arXiv:2008.08400). The model itself is never changed.

    Before :meth:`fit` densities are the prior's, and what needs data raises ``RuntimeError``; so do predictions and
    evidence once the model's weights have changed since: a posterior belongs to the weights that it was fitted at.

    Example:
        >>> la = Laplace(model, likelihood="classification", rank=100)
        >>> tuned = la.fit(train_loader).optimize_prior_precision()
        >>> la(x).shape == model(x).shape
        True
    """

    @without_idle_options
    @spelled
    def __init__(
        self,
        model: nn.Module,
        likelihood: str | nn.Module | Likelihood = "classification",
        subset_of_weights: WeightSubset = "all",
        hessian_structure: Structure | None = None,
        *,
        last_layer_name: str | None = None,
        subnetwork_indices: Any = None,
        n_subset: int | None = None,
        curvature: Curvature | None = None,
        kfac_approx: KfacApprox | None = None,
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
        enable_backprop: bool = False,
        tracer: Tracer = "export",
        cache: Cache = "auto",
        cache_bytes: int = 2**31,
        seed: int = 0,
        progress: bool = True,
        dict_key_x: str | None = None,
        dict_key_y: str | None = None,
        backend: Any = None,
        backend_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Describe the approximation; nothing is computed before :meth:`fit`.

        Args:
            model: A trained module; one in 16 bits is worked on in float32.
            likelihood: ``"classification"`` (classes on the last axis of the outputs), ``"regression"``,
                ``"multilabel"``, ``"heteroscedastic_regression"`` (means and then log-variances on the last axis of the
                outputs), a torch loss module such as ``nn.CrossEntropyLoss(weight=...)`` (classes on axis 1,
                as torch has them), or a likelihood of ``jax_core``; or ``"reward_modeling"``: the model gives two
                logits for a pair, the target says which is preferred, and predictions of single inputs are rewards,
                means and variances as in regression.
            subset_of_weights: Of the parameters with ``requires_grad=True``, ``"all"``, those of the ``"last_layer"``,
                those of modules in a list of names or patterns (``["head", "layer4.*"]``), or a ``"subnetwork"`` of
                single weights.
            hessian_structure: ``"kron_lowrank"``, a low rank across the layers beside the exact diagonal of the rest in
                Kronecker coordinates, which is the default; ``"lowrank"`` alone, the default where a ``method`` is
                given; ``"kron"``, ``"ekfac"``, ``"full"`` or ``"diag"``; or ``"gp"``, a Gaussian process with the
                network's kernel on ``n_subset`` training samples (arXiv:2008.08400), outputs curving by themselves.
            last_layer_name: Of the ``"last_layer"``; by default the module through whose output alone parameters reach
                the model's, found on the first batch (before, it is taken to be the one registered last).
            subnetwork_indices: Of the ``"subnetwork"``: places in the flattened ``model.parameters()``, sampled and
                given back within all of them; :mod:`bridge.subnetworks` chooses some.
            n_subset: Of ``"gp"``.
            curvature: ``"ggn"``, the generalised Gauss-Newton matrix, which is the default; ``"empirical_fisher"``,
                outer products of the gradients at the targets; or ``"mc_fisher"``, at targets drawn from the model.
            kfac_approx: Of Kronecker factors, where a weight is shared over positions of a sample (a sequence's, an
                image's): each counts by itself, ``"expand"``, which is the default; or inputs are averaged and output
                gradients summed over them before, ``"reduce"`` (arXiv:2311.00636).
            method: How a low rank is found: ``"nystrom"``, ``"gram"``, for ``"lowrank"`` also ``"lanczos"``,
                ``"block_lanczos"``, ``"lobpcg"``; ``"auto"``, the cheapest by a cost model; see :attr:`plan`.
            rank: Eigenpairs of a low rank, fewer where there are fewer weights.
            passes: Passes over the data of ``"nystrom"``.
            prior_precision: One number; one per parameter tensor or (but with Kronecker blocks) one per parameter, in
                the order of ``model.parameters()``; or a mapping from the parameters' names.
            prior_mean: Of the weights, given likewise.
            sigma_noise: Standard deviation of a regression's noise, a number or one per output.
            temperature: Above one it flattens the likelihood behind the posterior.
            logit_temperature: Divides the Gaussian logits before the link (Guo et al., 2017, arXiv:1706.04599).
            link_approx: From Gaussian logits to probabilities: ``"probit"``, ``"mc"``, ``"bridge"``,
                ``"bridge_norm"``, ``"mean_field_0"``, ``"mean_field_1"``, ``"mean_field_2"``; ``"auto"`` is
                ``"probit"`` until :meth:`optimize_prior_precision` tunes the prior under the last, the best by
                measurement, which is then set.
            n_samples: Samples of ``"mc"`` and of ``pred_type="nn"``.
            enable_backprop: Whether predictions can be differentiated once with respect to the input.
            tracer: How the model becomes a JAX function, see :func:`bridge.trace`.
            cache: Keep the data in memory: ``"auto"`` within ``cache_bytes``, ``"memory"`` always, ``"none"`` never.
            cache_bytes: For that.
            seed: Of everything random.
            progress: Show progress bars.
            dict_key_x: Of batches that are mappings, an input that must be there.
            dict_key_y: Of batches that are mappings, the target; by default ``"labels"`` and the like.
            backend: laplace-torch's: the name of its class says which ``curvature`` is meant; JAX computes it.
            backend_kwargs: laplace-torch's, of which ``stochastic=True`` asks for ``"mc_fisher"`` and ``kfac_approx``
                is the option of that name.

        Raises:
            ValueError: For an option out of its range, named, or a model without trainable parameters.
            TypeError: If ``model`` is not a module, or for a misspelt option.
        """
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is a {type(model).__name__}. Give a torch.nn.Module.")
        one_of("method", method, Method)
        if hessian_structure is None:
            hessian_structure = "kron_lowrank" if method == "auto" else "lowrank"
        check_structure(hessian_structure, n_subset)
        one_of("cache", cache, Cache)
        one_of("tracer", tracer, Tracer)
        for name, count in (("rank", rank), ("passes", passes), ("cache_bytes", cache_bytes)):
            whole(name, count)
        keys = {"dict_key_x": dict_key_x, "dict_key_y": dict_key_y, "n_subset": n_subset}
        curvature = curvature_of(curvature, backend, backend_kwargs)
        one_of("curvature", curvature, Curvature)
        how = {"structure": hessian_structure, "curvature": curvature, "method": method, "rank": rank, "passes": passes}
        how["kfac_approx"] = kfac_approx_of(kfac_approx, backend_kwargs)
        with wide_types(is_wide(model)):  # class weights may be in float64 too
            loss = to_loss(likelihood)
        super().__init__(
            model,
            loss,
            FitOptions(**how, progress=progress),
            ReadOptions(tracer=tracer, cache=cache, cache_bytes=cache_bytes, progress=progress, **keys),
            Subset.checked(subset_of_weights, last_layer_name, model, subnetwork_indices),
            link_approx=link_approx,
            n_samples=n_samples,
            enable_backprop=enable_backprop,
            seed=seed,
            prior_precision=prior_precision,
            prior_mean=prior_mean,
            sigma_noise=sigma_noise,
            temperature=temperature,
            logit_temperature=logit_temperature,
        )

    @spelled
    def fit(
        self,
        train_loader: Iterable[Any],
        override: bool = True,
        progress_bar: bool | None = None,
        *,
        num_total_samples: int | None = None,
        to_batch: ToBatch | None = None,
        checkpoint: str | Path | None = None,
    ) -> Laplace:
        """Trace the model and reduce its curvature over the loader.

        The loader is read once, into memory if it fits. If this fails, nothing of an earlier fit is lost.

        Args:
            train_loader: Yields ``(input, target)``, ``(a, b, ..., target)``, or mappings with ``input`` and ``target``
                or with ``labels`` beside the model's inputs; of torch tensors or numpy arrays. Sequences beside an
                ``attention_mask`` may differ in length.
            override: If not, the data are added to those of the earlier fit, if any: exactly for ``"full"`` and
                ``"diag"``, otherwise within the structure (see :func:`jax_core.operators.add`). Where the weights have
                been trained on since, its curvature stays that of the weights then, as in online Laplace
                approximations (Ritter et al., 2018, arXiv:1805.07810), and the mean is that of now.
            progress_bar: Show progress bars for this fit, or not, whatever ``progress`` says.
            num_total_samples: The size of the training set, if the loader shows a subset of it.
            to_batch: From what the loader yields to an ``(input, target)`` pair, where it yields something else.
            checkpoint: A folder for the state of this fit. If the process is killed, the same call goes on from there;
                its loader should show the same batches again (``shuffle=False``, or a seeded generator).

        Returns:
            This object.

        Raises:
            ValueError: If the loader is empty, a batch holds NaN or targets that do not fit, shapes differ between
                batches, or no single layer is the last and one was asked for.
            TypeError: If targets or batches are of the wrong type.
            TraceError: If the model cannot be traced, or samples of a batch see one another.
            MismatchError: If the traced model does not give what torch gives.
        """
        if num_total_samples is not None:
            whole("num_total_samples", num_total_samples)
        before = self.fit_result(check_weights=False)[0] if self.is_fitted and not override else None
        self.current_order()
        bars = self.reading.progress if progress_bar is None else progress_bar
        options = dataclasses.replace(self.options, progress=bars)
        reading = dataclasses.replace(self.reading, progress=bars)
        what = (self.model, train_loader, self.loss_fn, options, reading, self.hyperparameters, self.subset)
        read = {"to_batch": to_batch, "checkpoint": checkpoint}
        with wide_types(is_wide(self.model)):  # the model may have been widened since an earlier fit
            try:
                fit = fit_module(*what, seed=self.seed, num_total_samples=num_total_samples, before=self._fit, **read)
            except KeyboardInterrupt as stop:
                stop.add_note("The fit was interrupted; this Laplace is as it was before.")
                raise
            self.adopt(fit if before is None else before.with_more(fit, rank=self.options.rank), self.hyperparameters)
        return self

    def extra_repr(self) -> str:
        """What ``print`` shows beside the model."""
        o = self.options
        shape = f"{o.structure}, method={o.method}, rank={o.rank}" if "lowrank" in o.structure else o.structure
        shape += ", kfac_approx=reduce" if o.kfac_approx == "reduce" else ""
        covered = "" if self.subset.kind == "all" else f"{self.subset.told}, "
        state = f"fitted on {self._fit.fitted.num_samples} samples" if self._fit else "not fitted"
        divided = "" if self.logit_temperature == 1.0 else f", logit_temperature={self.logit_temperature:.4g}"
        prior = f"prior_precision={shown(self.hyperparameters.prior_precision)}{divided}"
        return f"{type(self.loss_fn.likelihood).__name__}, {shape}, {covered}{prior}, {state}"
