"""Scores of class probabilities."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from jax_core.types import ArrayLike


def _class_indices(pred: Shaped[ArrayLike, "*B C"], target: Shaped[ArrayLike, "..."]) -> Int[Array, "*B"]:
    """Targets as class indices, whether given as such or one-hot."""
    if target.shape == pred.shape:
        return jnp.argmax(jnp.asarray(target), axis=-1)
    if target.shape == pred.shape[:-1]:
        return jnp.asarray(target).astype(int)
    raise ValueError(
        f"Targets of shape {target.shape} do not go with predictions of shape {pred.shape}. "
        f"Give class indices of shape {pred.shape[:-1]} or one-hot targets of shape {pred.shape}."
    )


def correctness(pred: Float[ArrayLike, "*B C"], target: Shaped[ArrayLike, "..."]) -> Bool[Array, "*B"]:
    r"""Whether the most probable class is the target, $[\arg\max_c p_c = y]$.

    Args:
        pred: Probabilities or logits, with or without a batch axis.
        target: Class indices of shape `(*B,)`, or one-hot targets of shape `(*B, C)`.

    Returns:
        True where the prediction is right.

    Raises:
        ValueError: If the shapes do not go together.
    """
    return jnp.argmax(pred, axis=-1) == _class_indices(pred, target)


def accuracy(pred: Float[ArrayLike, "*B C"], target: Shaped[ArrayLike, "..."], *, top_k: int = 1) -> Float[Array, ""]:
    """Share of samples whose target is among the `top_k` most probable classes, in [0, 1].

    Args:
        pred: Probabilities or logits.
        target: Class indices of shape `(*B,)`, or one-hot targets of shape `(*B, C)`.
        top_k: How many guesses count; 1 is plain accuracy.

    Returns:
        The share of right samples.

    Raises:
        ValueError: If the shapes do not go together, or `top_k` is not between 1 and C.
    """
    if not 1 <= top_k <= pred.shape[-1]:
        raise ValueError(f"top_k={top_k} is not between 1 and the {pred.shape[-1]} classes.")
    guesses = jax.lax.top_k(pred, top_k)[1]  # (*B, K)
    hits = (guesses == _class_indices(pred, target)[..., None]).any(axis=-1)
    return hits.mean(dtype=pred.dtype)


def nll_categorical(prob: Float[ArrayLike, "*B C"], target: Shaped[ArrayLike, "..."]) -> Float[Array, ""]:
    r"""Mean negative log-likelihood in nats, $-\frac1n \sum_i \log p_{i, y_i}$.

    Args:
        prob: Probabilities (not logits), rows summing to 1.
        target: Class indices of shape `(*B,)`, or one-hot targets of shape `(*B, C)`.

    Returns:
        The mean over samples; infinite where a target has probability 0.

    Raises:
        ValueError: If the shapes do not go together.

    Source:
        I. J. Good, Rational decisions, 1952, doi:10.1111/j.2517-6161.1952.tb00104.x.
    """
    index = _class_indices(prob, target)[..., None]
    return -jnp.log(jnp.take_along_axis(prob, index, axis=-1)).mean()


def brier(prob: Float[ArrayLike, "*B C"], target: Shaped[ArrayLike, "..."]) -> Float[Array, ""]:
    r"""Brier score of class probabilities, $\frac1n \sum_i \sum_c (p_{ic} - [c = y_i])^2$, in [0, 2].

    Args:
        prob: Probabilities (not logits), rows summing to 1.
        target: Class indices of shape `(*B,)`, or one-hot targets of shape `(*B, C)`.

    Returns:
        The mean over samples of the sum over classes.

    Raises:
        ValueError: If the shapes do not go together.

    Source:
        G. W. Brier, Verification of forecasts expressed in terms of probability, 1950,
        doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2.
    """
    onehot = jax.nn.one_hot(_class_indices(prob, target), prob.shape[-1], dtype=prob.dtype)
    return jnp.square(prob - onehot).sum(axis=-1).mean()
