"""What a search for hyperparameters was asked for, checked before any work."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch

from bridge.dataloader import ToBatch
from bridge.options import LinkName, PredictionType, one_of, positive, whole
from jax_core.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from jax_core.tuning import Objective

TuningMethod: TypeAlias = Literal["joint", "marglik", "gradient", "gridsearch"]
PriorStructure: TypeAlias = Literal["scalar", "layerwise", "diag"]
Loss: TypeAlias = Objective | Callable[..., Any]
"""A name; a torchmetrics metric; or a function of torch tensors, ``(predictions, targets)`` or for regression also
``(means, covariances, targets)``."""

_METHODS = ("joint", "marglik", "gradient", "gridsearch")
_IDLE: dict[str, tuple[str, ...]] = {
    "marglik": ("val_loader", "grid"),
    "gradient": ("val_loader", "grid"),
    "gridsearch": ("n_steps", "lr", "init_prior_prec", "prior_structure"),
}


@dataclass(frozen=True, kw_only=True)
class Search:
    """See :meth:`bridge.Laplace.optimize_prior_precision` for each option."""

    method: TuningMethod | None = None
    pred_type: PredictionType = "glm"
    n_steps: int | None = None
    lr: float | None = None
    init_prior_prec: Any = None
    prior_structure: PriorStructure = "scalar"
    val_loader: Iterable[Any] | None = None
    loss: Loss = "nll"
    grid: Any = None
    link_approx: LinkName | None = None
    n_samples: int | None = None
    progress: bool = True
    to_batch: ToBatch | None = None

    @property
    def climbs(self) -> bool:
        """Whether the evidence is climbed by its gradient, not by the scalar's exact maximum."""
        return self.method == "gradient" or (self.prior_structure != "scalar" and not self.refines) or self.says_how

    @property
    def refines(self) -> bool:
        """Whether a precision for each layer is looked for on held-out data, from the best single one."""
        return self.prior_structure == "layerwise" and self.val_loader is not None and self.method in (None, "joint")

    @property
    def says_how(self) -> bool:
        """Whether the ascent is described, and its end asked for, rather than the best that it meets."""
        return any(x is not None for x in (self.n_steps, self.lr, self.init_prior_prec))

    def rescaled(self, factor: float) -> Search:
        """With precisions times a factor."""
        start = None if self.init_prior_prec is None else torch.as_tensor(self.init_prior_prec) * factor
        grid = None if self.grid is None else np.asarray(self.grid, np.float64) * factor
        return replace(self, init_prior_prec=start, grid=grid)

    def checked(self, likelihood: Likelihood) -> Search:
        """With the method asked for, or the best that the arguments allow.

        What a method of laplace-torch does not look at there either is left out, with a warning.

        Raises:
            ValueError: Naming what goes with what.
        """
        one_of("prior_structure", self.prior_structure, PriorStructure)
        one_of("pred_type", self.pred_type, PredictionType)
        if self.link_approx is not None:
            one_of("link_approx", self.link_approx, LinkName)
        for name, count in (("n_steps", self.n_steps), ("n_samples", self.n_samples)):
            if count is not None:
                whole(name, count)
        if self.lr is not None:
            positive("lr", self.lr)
        found = self if self.method is not None else replace(self, method=self._best(likelihood))
        one_of("method", found.method, TuningMethod)
        found = found._without_idle()
        found._check(likelihood)
        return found

    def _without_idle(self) -> Search:
        """Without what the method, where it is one of laplace-torch's, does not look at; warns of what that is."""
        unset = Search()
        idle = [n for n in _IDLE.get(self.method or "", ()) if not _is(getattr(self, n), getattr(unset, n))]
        if not idle:
            return self
        instead = (
            "Held-out data are looked at by method='gridsearch', or where no method= is given."
            if "val_loader" in idle or "grid" in idle
            else "It finds one precision for all layers on a grid; method='marglik' takes the others."
        )
        warnings.warn(f"method={self.method!r} does not look at {', '.join(idle)}. {instead}", stacklevel=6)
        return replace(self, **{name: getattr(unset, name) for name in idle})

    def _best(self, likelihood: Likelihood) -> TuningMethod:
        if self.val_loader is not None:
            return "joint" if isinstance(self.loss, str) and self.loss == "nll" and not self._sampled else "gridsearch"
        return "joint" if _has_density(likelihood) and not self.climbs else "marglik"

    @property
    def _sampled(self) -> bool:
        return self.pred_type == "nn"

    def _check(self, likelihood: Likelihood) -> None:
        if self.method == "gridsearch" and self.val_loader is None:
            raise ValueError("method='gridsearch' needs held-out data: val_loader=.")
        if self.method != "joint":
            return
        if self.loss != "nll" or self.climbs or self._sampled:
            raise ValueError(
                "method='joint' minimises the negative log-likelihood of linearised predictions with one precision for "
                "all layers, or with val_loader= and prior_structure='layerwise' one for each. For another loss or "
                "pred_type choose method='gridsearch', for n_steps, lr, init_prior_prec or another prior_structure "
                "method='marglik'."
            )
        if not _has_density(likelihood):
            raise ValueError(
                f"The likelihood {type(likelihood).__name__} has no predictive density to tune by. Use "
                "method='marglik', or pass loss=, a function (predictions, targets) -> loss, beside val_loader=."
            )


def _has_density(likelihood: Likelihood) -> bool:
    return isinstance(likelihood, Categorical | Bernoulli | Gaussian)


def grid_of(grid: Any, low: float | None, high: float | None, size: int | None, base: float) -> Any:
    """A grid as given, or by its logarithms' ends; ``None`` where nothing was said.

    Raises:
        ValueError: For both, or ends in the wrong order.
    """
    if low is None and high is None and size is None:
        return grid
    if grid is not None:
        raise ValueError("grid, and log_prior_prec_min, log_prior_prec_max or grid_size: give one or the others.")
    low, high, size = -4.0 if low is None else low, 4.0 if high is None else high, 100 if size is None else size
    whole("grid_size", size)
    positive("log_prior_prec_base", base)
    if not low < high:
        raise ValueError(f"log_prior_prec_min={low} does not lie below log_prior_prec_max={high}.")
    return np.logspace(low, high, size, base=base)


def method_or_prediction(pred_type: Any, method: Any) -> tuple[Any, Any]:
    """The first two arguments, in which a method may stand first: the two share no name.

    Raises:
        ValueError: If the first is neither, or both are methods.
    """
    if pred_type not in _METHODS:
        if pred_type not in get_args(PredictionType):
            raise ValueError(
                f"pred_type={pred_type!r}. Choose one of {', '.join(map(repr, get_args(PredictionType)))}, or in its "
                f"place a method: {', '.join(map(repr, _METHODS))}."
            )
        return pred_type, method
    if method is not None:
        raise ValueError(f"{pred_type!r} and {method!r} are both methods. Give one.")
    return "glm", str(getattr(pred_type, "value", pred_type))


def _is(value: Any, default: Any) -> bool:
    """Whether an option is left as it was; arrays are not compared."""
    return value is default or (isinstance(default, str) and value == default)
