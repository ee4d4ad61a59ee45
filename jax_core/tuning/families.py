"""What a search needs of a likelihood: probabilities of Gaussian logits, their loss, and the spread of targets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jax_core.predictive.links import Link
from jax_core.types import pytree

Logits = Float[Array, "N K"]


@runtime_checkable
class Family(Protocol):
    """Positions with ``K`` logits each whose predictive has a likelihood."""

    def natural(self, mean: Logits, covariance: Float[Array, "N K K"]) -> Logits:
        r"""Natural parameters $\eta$ of the predictive, in which $\log p(y) = \eta^\top T(y) - A(\eta)$."""
        ...

    def nll(self, natural: Logits, target: Array) -> Float[Array, " N"]:
        """Of each position; zero where a target is ignored."""
        ...

    def seen(self, target: Array) -> Bool[Array, " N"]:
        """Positions whose target is not ignored."""
        ...

    def hessian(self, logits: Logits) -> Float[Array, "N K K"]:
        """Of the loss over the logits: the covariance of targets drawn from the network's own probabilities."""
        ...


@pytree
@dataclass(frozen=True)
class ClassFamily:
    """One of ``K`` classes.

    Attributes:
        link: From Gaussian logits to probabilities.
        ignore_index: The class of targets that do not count.
    """

    link: Link
    ignore_index: int | None = field(default=None, metadata={"static": True})

    def natural(self, mean: Logits, covariance: Float[Array, "N K K"]) -> Logits:
        """Logarithms of the probabilities."""
        p = self.link(mean, covariance)
        return jnp.log(jnp.maximum(p, jnp.finfo(p.dtype).tiny))

    def nll(self, natural: Logits, target: Array) -> Float[Array, " N"]:
        """See :meth:`Family.nll`; targets are classes ``(N,)`` or their probabilities ``(N, K)``."""
        log_p = jax.nn.log_softmax(natural, axis=-1)
        if jnp.issubdtype(target.dtype, jnp.inexact):
            return -(target * log_p).sum(-1)
        seen = self.seen(target)
        chosen = jnp.take_along_axis(log_p, jnp.where(seen, target, 0)[:, None].astype(jnp.int32), axis=-1)[:, 0]
        return jnp.where(seen, -chosen, 0.0)

    def seen(self, target: Array) -> Bool[Array, " N"]:
        """See :meth:`Family.seen`."""
        if self.ignore_index is None or jnp.issubdtype(target.dtype, jnp.inexact):
            return jnp.ones(target.shape[0], bool)
        return target.astype(jnp.int32) != self.ignore_index

    def hessian(self, logits: Logits) -> Float[Array, "N K K"]:
        """See :meth:`Family.hessian`."""
        p = jax.nn.softmax(logits, axis=-1)
        return jnp.eye(p.shape[-1], dtype=p.dtype) * p[:, None] - p[:, :, None] * p[:, None, :]


@pytree
@dataclass(frozen=True)
class LabelFamily:
    """A label that holds or does not, one logit each; the probit approximation."""

    def natural(self, mean: Logits, covariance: Float[Array, "N K K"]) -> Logits:
        """The logit of the probability."""
        return mean / jnp.sqrt(1 + jnp.pi / 8 * jnp.diagonal(covariance, axis1=-2, axis2=-1))

    def nll(self, natural: Logits, target: Array) -> Float[Array, " N"]:
        """See :meth:`Family.nll`."""
        y = target.reshape(natural.shape).astype(natural.dtype)
        return -(y * jax.nn.log_sigmoid(natural) + (1 - y) * jax.nn.log_sigmoid(-natural)).sum(-1)

    def seen(self, target: Array) -> Bool[Array, " N"]:
        """See :meth:`Family.seen`."""
        return jnp.ones(target.reshape(-1).shape[0], bool)

    def hessian(self, logits: Logits) -> Float[Array, "N K K"]:
        """See :meth:`Family.hessian`."""
        return (jax.nn.sigmoid(logits) * jax.nn.sigmoid(-logits))[..., None]
