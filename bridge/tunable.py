"""Hyperparameters chosen by data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bridge.dataloader import ToBatch
from bridge.function_space import FunctionSpace
from bridge.options import LinkName, PredictionType, spelled
from bridge.predictives import best_link
from bridge.search import Loss, PriorStructure, Search, TuningMethod, grid_of, method_or_prediction
from bridge.tuning import tune
from jax_core.tuning import Tuned


class TunableLaplace(FunctionSpace):
    """A Laplace whose hyperparameters can be chosen; what was chosen by what is in :meth:`report`."""

    @spelled
    def optimize_prior_precision(
        self,
        pred_type: PredictionType | TuningMethod = "glm",
        method: TuningMethod | None = None,
        n_steps: int | None = None,
        lr: float | None = None,
        init_prior_prec: Any = None,
        prior_structure: PriorStructure = "scalar",
        val_loader: Iterable[Any] | None = None,
        loss: Loss = "nll",
        log_prior_prec_min: float | None = None,
        log_prior_prec_max: float | None = None,
        grid_size: int | None = None,
        link_approx: LinkName | None = None,
        n_samples: int | None = None,
        verbose: bool = False,
        progress_bar: bool | None = None,
        log_prior_prec_base: float = 10.0,
        *,
        grid: Any = None,
        to_batch: ToBatch | None = None,
    ) -> Tuned:
        r"""Choose the prior precision and what goes with it, and use them from here on; nothing changes if this fails.

        By default (``"joint"``) the prior precision is chosen together with :attr:`logit_temperature`, or with
        :attr:`sigma_noise` of a regression where that is one number. Temperature scaling alone is among the choices.

        - With ``val_loader``: the smallest precision, the most uncertainty, whose held-out likelihood is neither below
          temperature scaling's nor worse than the best by a one-sided paired test at five per cent.
        - Without, classification and several labels: likewise by the likelihood of some training samples less what the
          network owes to having seen them (Efron, 2004, doi:10.1198/016214504000000692), within one nat on one of them.
          The loader of the fit is read once more, for the gradient of the loss, which tells how far the network has
          followed its targets; not where it was an iterator, or samples have several positions.
        - Without, regression: by the largest evidence over precision and noise.

        :meth:`report` says what was chosen by what, beside the figures of the network and of temperature scaling.

        Args:
            pred_type: Of the predictions that ``"gridsearch"`` scores, as in :meth:`forward`; or a method.
            method: ``"joint"``; ``"marglik"``, the largest evidence over the precision alone, which warns where its
                predictions seem worse than the network's; ``"gradient"``, the same by gradient ascent;
                ``"gridsearch"``, the smallest ``loss`` on held-out data over a grid, which warns if that lies at an
                edge. By default what the other arguments ask for, and ``"joint"`` if they leave it open; ``"marglik"``
                for a likelihood without predictive density.
            n_steps: Of gradient ascent, by Adam in the logarithm: that many steps from ``init_prior_prec``, and the
                last point. Where none of the three is given, the best point of 200 from the best single precision.
            lr: Of gradient ascent; 0.1 by default.
            init_prior_prec: Where it begins; one by default.
            prior_structure: Of the precision that the evidence is maximised over: one number, ``"scalar"``; one per
                parameter tensor, ``"layerwise"``; or one per weight, ``"diag"``; the last two by gradient ascent. Of
                the joint search with ``val_loader`` also ``"layerwise"``: from its choice on, precisions of tensors and
                what goes with them by gradients of the held-out likelihood, where that is then smaller.
            val_loader: Held-out data, batches as in :meth:`fit`.
            loss: For ``"gridsearch"``: ``"nll"``, ``"ece"`` (classification), ``"chi2"`` (regression); a torchmetrics
                metric; or a function of torch tensors ``(predictions, targets)``, for regression also ``(means,
                covariances, targets)``, predictions in the model's shape.
            log_prior_prec_min: Of the grid of ``"gridsearch"``, the exponent of its smallest precision; -4 if either
                of the next two is given.
            log_prior_prec_max: That of its largest; 4 likewise.
            grid_size: Its points; 100 likewise.
            link_approx: Another link to tune under than :attr:`link_approx`.
            n_samples: Another number of samples.
            verbose: Print what was chosen.
            progress_bar: Show progress bars, or not, whatever ``progress`` says.
            log_prior_prec_base: Of these exponents.
            grid: Precisions to try in their place; by default 21 from 1e-4 to 1e6, for ``"joint"`` 73 from 0.1 to 1e5.
            to_batch: As in :meth:`fit`.

        Returns:
            What was chosen, what it scored, and the whole curve; per tensor in the order of ``model.parameters()``.

        Raises:
            RuntimeError: Before :meth:`fit`.
            ValueError: For another method, arguments that do not go with it, or data that do not fit the model.
            ImportError: For gradient ascent without optax.
        """
        fit = self.fit_result()[0]
        predicted, method = method_or_prediction(pred_type, method)
        search = Search(
            method=method,
            pred_type=predicted,
            n_steps=n_steps,
            lr=lr,
            init_prior_prec=init_prior_prec,
            prior_structure=prior_structure,
            val_loader=val_loader,
            loss=loss,
            grid=grid_of(grid, log_prior_prec_min, log_prior_prec_max, grid_size, log_prior_prec_base),
            link_approx=link_approx,
            n_samples=n_samples,
            progress=self.options.progress if progress_bar is None else progress_bar,
            to_batch=to_batch,
        ).checked(self.loss_fn.likelihood)
        tuned = tune(self, search)
        self.take(tuned)
        if search.method == "joint":
            self.link_approx = best_link(fit, search.link_approx or self.link_approx)
        if verbose:
            print(self.report())
        return tuned
