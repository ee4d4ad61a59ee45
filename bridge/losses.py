"""torch's loss modules as likelihoods of the core."""

from __future__ import annotations

from typing import Any

from torch import nn

from bridge.tensors import to_free_jax
from jax_core.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood, as_likelihood

_NAMES = {"classification": "cross_entropy", "regression": "mse", "multilabel": "binary_cross_entropy"}


def to_likelihood(loss: Any) -> Likelihood:
    """The likelihood behind a name, a torch loss module or a likelihood.

    ``reduction`` is not looked at: a likelihood is a sum over the data.

    Args:
        loss: ``"classification"``, ``"regression"``, ``"multilabel"``; ``nn.CrossEntropyLoss`` (with ``weight``,
            ``label_smoothing``, ``ignore_index``), ``nn.MSELoss``, ``nn.BCEWithLogitsLoss`` (with ``pos_weight``); or
            a likelihood of ``jax_core``.

    Raises:
        ValueError: For an unknown name or a loss module with no counterpart.
    """
    if isinstance(loss, str):
        if loss not in _NAMES:
            raise ValueError(
                f"Unknown likelihood {loss!r}. Choose one of {', '.join(map(repr, _NAMES))}, or a loss module."
            )
        return as_likelihood(_NAMES[loss])
    if isinstance(loss, nn.CrossEntropyLoss):
        return Categorical(_array(loss.weight), loss.label_smoothing, loss.ignore_index)
    if isinstance(loss, nn.BCEWithLogitsLoss):
        if loss.weight is not None:
            raise ValueError(
                "nn.BCEWithLogitsLoss(weight=...) rescales single batch elements. Use pos_weight, or none."
            )
        return Bernoulli(_array(loss.pos_weight))
    if isinstance(loss, nn.MSELoss):
        return Gaussian()
    if isinstance(loss, nn.Module):
        raise ValueError(
            f"No likelihood for {type(loss).__name__}. Use nn.CrossEntropyLoss, nn.MSELoss or nn.BCEWithLogitsLoss, or "
            "pass a likelihood of jax_core (jax_core.Custom takes any loss of one sample)."
        )
    return as_likelihood(loss)


def _array(tensor: Any) -> Any:
    return None if tensor is None else to_free_jax(tensor)
