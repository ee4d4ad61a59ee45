"""torch's loss modules as likelihoods of the core."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from torch import nn

from bridge.tensors import to_free_jax
from jax_core.likelihoods import Bernoulli, Categorical, Custom, Gaussian, Likelihood, Poisson, as_likelihood

_NAMES = {
    "classification": "cross_entropy",
    "regression": "mse",
    "multilabel": "binary_cross_entropy",
    "heteroscedastic_regression": "heteroscedastic",
}
_CUSTOM = "likelihood=jax_core.Custom(lambda output, target: ...) takes any convex loss of one sample"
_MODULES = (nn.CrossEntropyLoss, nn.NLLLoss, nn.MSELoss, nn.BCEWithLogitsLoss, nn.BCELoss, nn.PoissonNLLLoss)
_REFUSED: dict[type[nn.Module], str] = {
    nn.GaussianNLLLoss: "it takes a mean and a variance as two inputs. Let the model return the means and then the "
    "logarithms of the variances on its last axis, with likelihood='heteroscedastic_regression', or use nn.MSELoss "
    "with sigma_noise= (one number, or one per output)",
    nn.HuberLoss: "its Hessian vanishes for residuals above delta, so outliers would count as no data. Use nn.MSELoss",
    nn.SmoothL1Loss: "its Hessian vanishes for residuals above beta: outliers would count as no data. Use nn.MSELoss",
    nn.L1Loss: "its Hessian is zero almost everywhere, so the curvature would be zero. Use nn.MSELoss",
    nn.KLDivLoss: "it takes log-probabilities and probabilities. Use nn.CrossEntropyLoss, which takes probabilities as "
    "targets too",
}


@dataclass(frozen=True)
class Loss:
    """A likelihood, and how a torch model's outputs become the core's.

    Attributes:
        likelihood: Of the outputs with classes last.
        class_axis: Where the outputs have their classes, counted in the batch; ``None`` for the last axis.
        transform: Applied to the outputs: to the logits of a model that returns probabilities.
        predicted: What predictions are about, where that is not the likelihood.
        name: The name that it was asked for by, if any.
    """

    likelihood: Likelihood
    class_axis: int | None = None
    transform: Callable[[jax.Array], jax.Array] | None = None
    predicted: Likelihood | None = None
    name: str | None = None


def to_likelihood(loss: Any) -> Likelihood:
    """The likelihood behind a name, a torch loss module or a likelihood.

    ``reduction`` is not looked at: a likelihood is a sum over the data.

    Args:
        loss: ``"classification"``, ``"regression"``, ``"multilabel"``, ``"heteroscedastic_regression"``,
            ``"reward_modeling"``;
            ``nn.CrossEntropyLoss`` (with ``weight``, ``label_smoothing``, ``ignore_index``), ``nn.NLLLoss`` on
            log-probabilities (``weight``, ``ignore_index``), ``nn.MSELoss``, ``nn.BCEWithLogitsLoss`` (with
            ``pos_weight``), ``nn.BCELoss`` on probabilities, ``nn.PoissonNLLLoss``; or a likelihood of ``jax_core``.

    Raises:
        ValueError: For an unknown name or a loss module with no counterpart.
    """
    return to_loss(loss).likelihood


def to_loss(loss: Any) -> Loss:
    """:func:`to_likelihood`, with what else the loss says of the model's outputs.

    torch's modules have classes on axis 1 of the batch; a name or a likelihood of the core has them last.

    Raises:
        ValueError: For an unknown name or a loss module with no counterpart.
    """
    if loss == "reward_modeling":  # a comparison is a choice between two outputs; predictions are rewards
        return Loss(Categorical(), predicted=Gaussian(), name="reward_modeling")
    if isinstance(loss, str):
        if loss not in _NAMES:
            raise ValueError(
                f"Unknown likelihood {loss!r}. Choose one of {', '.join(map(repr, _NAMES))}, 'reward_modeling', or a "
                "loss module."
            )
        return Loss(as_likelihood(_NAMES[loss]), name=next(name for name in _NAMES if name == loss))
    if isinstance(loss, nn.Module):
        return _of_module(loss)
    if (getattr(loss, "__module__", None) or "").partition(".")[0] == "torch" and not isinstance(loss, Likelihood):
        raise ValueError(
            f"The likelihood is torch's function {getattr(loss, '__name__', type(loss).__name__)}, which takes no "
            "arrays of JAX. Give a loss module (nn.CrossEntropyLoss() for F.cross_entropy, nn.MSELoss() for "
            f"F.mse_loss), or a name; {_CUSTOM}, written in jax.numpy."
        )
    return Loss(as_likelihood(loss))


def _of_module(loss: nn.Module) -> Loss:
    _check_own_forward(loss)
    if isinstance(loss, nn.CrossEntropyLoss):
        return Loss(Categorical(_array(loss.weight), loss.label_smoothing, loss.ignore_index), class_axis=1)
    if isinstance(loss, nn.NLLLoss):
        # log-probabilities are logits that are normalised already: softmax and curvature are the same
        return Loss(Categorical(_array(loss.weight), 0.0, loss.ignore_index), class_axis=1)
    if isinstance(loss, nn.BCEWithLogitsLoss | nn.BCELoss) and loss.weight is not None:
        raise ValueError(
            f"nn.{type(loss).__name__}(weight=...) rescales single batch elements. Use pos_weight, or none."
        )
    if isinstance(loss, nn.BCEWithLogitsLoss):
        return Loss(Bernoulli(_array(loss.pos_weight)))
    if isinstance(loss, nn.BCELoss):
        return Loss(Bernoulli(), transform=logits_of_probabilities)
    if isinstance(loss, nn.PoissonNLLLoss):
        if not loss.log_input:
            raise ValueError(
                "nn.PoissonNLLLoss(log_input=False) takes rates. Let the model return their logarithm, with "
                "log_input=True: a Gaussian over rates would put weight on negative ones."
            )
        return Loss(Poisson())
    if isinstance(loss, nn.MSELoss):
        return Loss(Gaussian())
    reason = next((why for kind, why in _REFUSED.items() if isinstance(loss, kind)), None)
    known = "Use nn.CrossEntropyLoss, nn.NLLLoss, nn.MSELoss, nn.BCEWithLogitsLoss, nn.BCELoss or nn.PoissonNLLLoss"
    raise ValueError(f"No likelihood for {type(loss).__name__}: {reason or f'unknown here. {known}'}; {_CUSTOM}.")


def _check_own_forward(loss: nn.Module) -> None:
    """Refuse a subclass whose forward is another function than that of torch's module.

    Raises:
        ValueError: Naming the class and the module that it is made from.
    """
    base = next((kind for kind in _MODULES if isinstance(loss, kind)), None)
    if base is not None and (type(loss).forward is not base.forward or "forward" in vars(loss)):
        raise ValueError(
            f"{type(loss).__name__} is an nn.{base.__name__} with a forward of its own, so that its loss is another "
            f"one, which cannot be read here. Give nn.{base.__name__} itself, with what forward does to the outputs "
            f"moved into the model; {_CUSTOM}."
        )


def logits_of_probabilities(probabilities: jax.Array) -> jax.Array:
    r"""$\log p - \log(1 - p)$, of probabilities that rounding has not carried to zero or one."""
    eps = jnp.finfo(probabilities.dtype).eps
    inside = jnp.clip(probabilities, eps, 1 - eps)
    return jnp.log(inside) - jnp.log1p(-inside)


def describe(likelihood: Likelihood) -> str:
    """A likelihood as one line of text: equal for equal ones, in another process too."""
    if isinstance(likelihood, Custom):
        return f"Custom({getattr(likelihood.loss, '__qualname__', type(likelihood.loss).__name__)})"
    fields = [f"{k}={v.tolist() if hasattr(v, 'tolist') else v!r}" for k, v in vars(likelihood).items() if k != "noise"]
    return f"{type(likelihood).__name__}({', '.join(fields)})"


def _array(tensor: Any) -> Any:
    return None if tensor is None else to_free_jax(tensor)
