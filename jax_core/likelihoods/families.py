"""The likelihoods by name: classes, numbers, labels, counts, and losses of one's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_core.likelihoods.base import EachOutputAlone, Likelihood, Outputs, like, per_sample
from jax_core.likelihoods.heteroscedastic import Heteroscedastic
from jax_core.types import pytree


@pytree
@dataclass(frozen=True)
class Categorical:
    r"""Softmax classification, with ``torch.nn.CrossEntropyLoss``'s options under ``reduction="sum"``.

    $-\sum_c t_c \log p_c$ with $p = \operatorname{softmax}(f)$ and
    $t = w_y (1-\epsilon) e_y + \tfrac{\epsilon}{C} w$. The Hessian is
    $a\,(\operatorname{diag}(p) - p p^\top)$ with $a = \sum_c t_c$: it depends on the target through $a$ alone.

    Attributes:
        weight: Weight $w$ per class, or ``None`` for ones.
        label_smoothing: $\epsilon \in [0, 1]$.
        ignore_index: Targets with this value count nothing.
    """

    weight: Float[Array, " C"] | None = None
    label_smoothing: float = field(default=0.0, metadata={"static": True})
    ignore_index: int | None = field(default=None, metadata={"static": True})

    def target_weights(self, outputs: Outputs, target: Any) -> Outputs:
        """The weights ``t`` of the log-probabilities; class indices or class probabilities both do."""
        classes = outputs.shape[-1]
        target = jnp.asarray(target)
        if jnp.issubdtype(target.dtype, jnp.inexact):
            one_hot, seen = target.astype(outputs.dtype), jnp.ones(target.shape[:-1], bool)
        else:
            target = target.astype(jnp.int32)  # ignore_index=-100 means class 156 to an unsigned byte
            seen = jnp.ones(target.shape, bool) if self.ignore_index is None else target != self.ignore_index
            one_hot = jax.nn.one_hot(target, classes, dtype=outputs.dtype)
        smooth = (1.0 - self.label_smoothing) * one_hot + self.label_smoothing / classes
        weight = 1.0 if self.weight is None else self.weight.astype(outputs.dtype)
        return jnp.where(seen[..., None], smooth * weight, 0.0)

    def nll(self, outputs: Outputs, target: Any) -> Float[Array, " B"]:
        """See :meth:`Likelihood.nll`."""
        return per_sample(-self.target_weights(outputs, target) * jax.nn.log_softmax(outputs, axis=-1))

    def hessian_mv(self, outputs: Outputs, target: Any, vector: Outputs) -> Outputs:
        """See :meth:`Likelihood.hessian_mv`."""
        p = jax.nn.softmax(outputs, axis=-1)
        total = self.target_weights(outputs, target).sum(-1, keepdims=True)
        # H 1 = 0, so a constant may be taken from the vector: with its value at the likeliest class the product keeps
        # its digits where p is nearly one, and 1 - p would cancel.
        likeliest = jax.nn.one_hot(p.argmax(-1), p.shape[-1], dtype=p.dtype)
        shifted = vector - (likeliest * vector).sum(-1, keepdims=True)
        return total * p * (shifted - (p * shifted).sum(-1, keepdims=True))

    def block_size(self, shape: tuple[int, ...]) -> int:
        """The classes of a position curve together."""
        return shape[-1]

    def sample(self, key: Array, outputs: Outputs) -> Array:
        """See :meth:`Likelihood.sample`."""
        return jax.random.categorical(key, outputs, axis=-1)


@pytree
@dataclass(frozen=True)
class Gaussian(EachOutputAlone):
    r"""Regression, $\tfrac12 \lVert (f - y) / \sigma \rVert^2$ and $H = \operatorname{diag}(\sigma^{-2})$.

    Noise that is one number enters later, as ``sigma_noise``: it scales the curvature, which needs no new pass over the
    data. Noise that differs between outputs belongs to the loss.

    Attributes:
        noise: $\sigma$ per output, in the outputs' shape, or ``None`` for ones.
    """

    noise: Float[Array, "*output"] | None = None

    def nll(self, outputs: Outputs, target: Any) -> Float[Array, " B"]:
        """See :meth:`Likelihood.nll`, without the constant of the normal density."""
        return per_sample(0.5 * jnp.square(self._in_noise(outputs - like(target, outputs))))

    def hessian_mv(self, outputs: Outputs, target: Any, vector: Outputs) -> Outputs:
        """See :meth:`Likelihood.hessian_mv`."""
        return self._in_noise(self._in_noise(vector))

    def sample(self, key: Array, outputs: Outputs) -> Array:
        """See :meth:`Likelihood.sample`."""
        noise = jax.random.normal(key, outputs.shape, outputs.dtype)
        return outputs + (noise if self.noise is None else noise * self.noise.astype(outputs.dtype))

    def _in_noise(self, values: Outputs) -> Outputs:
        return values if self.noise is None else values / self.noise.astype(values.dtype)


@pytree
@dataclass(frozen=True)
class Bernoulli(EachOutputAlone):
    r"""Independent binary labels (multi-label), $H = \operatorname{diag}(w\, p (1-p))$, $p = \sigma(f)$.

    Attributes:
        positive_weight: Weight of the positive class per output, torch's ``pos_weight``, or ``None`` for ones.
    """

    positive_weight: Float[Array, " C"] | None = None

    def nll(self, outputs: Outputs, target: Any) -> Float[Array, " B"]:
        """See :meth:`Likelihood.nll`."""
        y = like(target, outputs)
        weight = 1.0 if self.positive_weight is None else self.positive_weight.astype(outputs.dtype)
        return per_sample(-weight * y * jax.nn.log_sigmoid(outputs) - (1.0 - y) * jax.nn.log_sigmoid(-outputs))

    def hessian_mv(self, outputs: Outputs, target: Any, vector: Outputs) -> Outputs:
        """See :meth:`Likelihood.hessian_mv`."""
        y = like(target, outputs)
        weight = 1.0 if self.positive_weight is None else self.positive_weight.astype(outputs.dtype)
        # sigmoid(-f) is 1 - p without its cancellation
        return (weight * y + 1.0 - y) * jax.nn.sigmoid(outputs) * jax.nn.sigmoid(-outputs) * vector

    def sample(self, key: Array, outputs: Outputs) -> Array:
        """See :meth:`Likelihood.sample`."""
        return jax.random.bernoulli(key, jax.nn.sigmoid(outputs)).astype(outputs.dtype)


@pytree
@dataclass(frozen=True)
class Poisson(EachOutputAlone):
    r"""Counts with rate $e^f$: $e^f - y f$ and $H = \operatorname{diag}(e^f)$, torch's ``PoissonNLLLoss``."""

    def nll(self, outputs: Outputs, target: Any) -> Float[Array, " B"]:
        """See :meth:`Likelihood.nll`, without the constant, the logarithm of y factorial."""
        return per_sample(jnp.exp(outputs) - like(target, outputs) * outputs)

    def hessian_mv(self, outputs: Outputs, target: Any, vector: Outputs) -> Outputs:
        """See :meth:`Likelihood.hessian_mv`."""
        return jnp.exp(outputs) * vector

    def sample(self, key: Array, outputs: Outputs) -> Array:
        """See :meth:`Likelihood.sample`."""
        return jax.random.poisson(key, jnp.exp(outputs)).astype(outputs.dtype)


@pytree
@dataclass(frozen=True)
class Unweighted(EachOutputAlone):
    r"""No loss at all, $H = I$: the GGN becomes $\sum_i J_i^\top J_i$ and targets are ignored."""

    def nll(self, outputs: Outputs, target: Any) -> Float[Array, " B"]:
        """Zero for every sample."""
        return jnp.zeros(outputs.shape[0], outputs.dtype)

    def hessian_mv(self, outputs: Outputs, target: Any, vector: Outputs) -> Outputs:
        """See :meth:`Likelihood.hessian_mv`."""
        return vector

    def sample(self, key: Array, outputs: Outputs) -> Array:
        """See :meth:`Likelihood.sample`."""
        return outputs


@pytree
@dataclass(frozen=True)
class Custom:
    """Any twice differentiable ``loss(output, target) -> scalar`` of one sample.

    ``output`` is one sample's, as the model gives it without its batch axis; ``target`` is one sample's entry of
    whatever the loader yields: an array, or a tuple or mapping of arrays (time and event of a survival model).

    Products with its Hessian are forward-over-reverse derivatives. A loss that is not convex in the output gives an
    indefinite GGN, which the low-rank reductions refuse.

    Example:
        >>> counts = Custom(lambda log_rate, count: jnp.sum(jnp.exp(log_rate) - count * log_rate))
        >>> counts.nll(jnp.zeros((2, 1)), jnp.ones((2, 1))).tolist()
        [1.0, 1.0]
    """

    loss: Callable[[Any, Any], Any] = field(metadata={"static": True})

    def nll(self, outputs: Outputs, target: Any) -> Float[Array, " B"]:
        """See :meth:`Likelihood.nll`."""
        return jax.vmap(self.loss)(outputs, target)

    def hessian_mv(self, outputs: Outputs, target: Any, vector: Outputs) -> Outputs:
        """See :meth:`Likelihood.hessian_mv`."""

        def one(f: Array, y: Any, v: Array) -> Array:
            return jax.jvp(jax.grad(lambda g: self.loss(g, y)), (f,), (v,))[1]

        return jax.vmap(one)(outputs, target, vector)

    def sample(self, key: Array, outputs: Outputs) -> Any:
        """A bare loss has no distribution to draw from; always raises."""
        raise TypeError(
            "A loss given as a callable says nothing about how targets are distributed, so no targets can be drawn. "
            "Pass a likelihood object with a sample method, or use the GGN or the empirical Fisher."
        )


def as_likelihood(loss_fn: Any) -> Likelihood:
    """Turn the name of a loss, a callable loss or a likelihood into a likelihood.

    Args:
        loss_fn: ``"cross_entropy"``, ``"mse"``, ``"binary_cross_entropy"``, ``"heteroscedastic"``, ``"none"`` (or
            ``None``), a callable ``loss(output, target) -> scalar`` of one sample, or a :class:`Likelihood`.

    Raises:
        ValueError: For any other name.
        TypeError: For an object that is none of these.
    """
    named = {
        "cross_entropy": Categorical(),
        "mse": Gaussian(),
        "binary_cross_entropy": Bernoulli(),
        "heteroscedastic": Heteroscedastic(),
        "none": Unweighted(),
        None: Unweighted(),
    }
    if loss_fn is None or isinstance(loss_fn, str):
        if loss_fn not in named:
            known = ", ".join(repr(name) for name in named if name)
            raise ValueError(f"Unknown loss {loss_fn!r}. Choose one of {known}, a callable or a Likelihood.")
        return named[loss_fn]
    if isinstance(loss_fn, Likelihood):
        return loss_fn
    if callable(loss_fn):
        return Custom(loss_fn)
    raise TypeError(f"A loss is a name, a callable or a Likelihood, not {type(loss_fn).__name__}.")
