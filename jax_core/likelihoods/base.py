"""Likelihoods: the loss per sample and its curvature with respect to the model's output.

Every likelihood is a frozen value with the same few methods, all on a batch. ``outputs`` has shape ``(B, ..., C)``
and ``target`` belongs to it; the loss is a sum over every axis but the first, one number per sample. Curvatures are
products: no ``C x C`` matrix per sample is formed unless :func:`dense_hessian` is asked for one.
"""

from __future__ import annotations

import math
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Outputs: TypeAlias = Float[Array, "B *rest"]


@runtime_checkable
class Likelihood(Protocol):
    r"""$-\log p(y \mid f)$ per sample and its Hessian with respect to the outputs $f$."""

    def nll(self, outputs: Outputs, target: Any) -> Float[Array, " B"]:
        r"""$-\log p(y_i \mid f_i)$ for each sample."""
        ...

    def hessian_mv(self, outputs: Outputs, target: Any, vector: Outputs) -> Outputs:
        r"""$H_i v_i$ with $H_i = \nabla_f^2 [-\log p(y_i \mid f_i)]$."""
        ...

    def sample(self, key: Array, outputs: Outputs) -> Any:
        """Draw targets from the model's own predictive distribution."""
        ...


def per_sample(values: Float[Array, "B *rest"]) -> Float[Array, " B"]:
    """The sum over every axis but the first."""
    return values.reshape(values.shape[0], -1).sum(-1)


def like(target: Any, outputs: Outputs) -> Outputs:
    """Targets in the shape and type of the outputs.

    Raises:
        ValueError: If there is not one for each.
    """
    target = jnp.asarray(target).astype(outputs.dtype)
    if target.size != outputs.size:
        raise ValueError(
            f"Targets of shape {target.shape} do not fit outputs of shape {outputs.shape}. "
            "Give one target value per output."
        )
    return target.reshape(outputs.shape)


def score(likelihood: Likelihood, outputs: Outputs, target: Any) -> Outputs:
    r"""$\nabla_f [-\log p(y_i \mid f_i)]$ for each sample, by reverse mode."""
    return jax.grad(lambda f: likelihood.nll(f, target).sum())(outputs)


class EachOutputAlone:
    """For likelihoods whose Hessian over a sample's outputs is its diagonal."""

    def block_size(self, shape: tuple[int, ...]) -> int:
        """See :func:`block_size`."""
        return 1


def block_size(likelihood: Likelihood, shape: tuple[int, ...]) -> int:
    """How many neighbouring outputs of a sample curve together: the classes of a pixel, one output of a regression.

    A likelihood says so by a method of this name; of one that does not, all outputs do.

    Args:
        likelihood: Whose loss curves.
        shape: Of a sample's outputs.
    """
    says = getattr(likelihood, "block_size", None)
    return math.prod(shape) if says is None else says(shape)


def dense_hessian(likelihood: Likelihood, outputs: Outputs, target: Any) -> Float[Array, "B C C"]:
    """The Hessian of every sample as a matrix over its flattened outputs, ``C`` products each."""
    return _blocks(likelihood, outputs, target, outputs[0].size)[:, 0]


def block_hessians(likelihood: Likelihood, outputs: Outputs, target: Any) -> Float[Array, "B N K K"]:
    """The blocks on the diagonal of every sample's Hessian, all that is not zero: ``K`` products for all ``N``."""
    return _blocks(likelihood, outputs, target, block_size(likelihood, outputs.shape[1:]))


def _blocks(likelihood: Likelihood, outputs: Outputs, target: Any, size: int) -> Float[Array, "B N K K"]:
    count = outputs[0].size // size
    basis = jnp.tile(jnp.eye(size, dtype=outputs.dtype), (1, count)).reshape((size, 1, *outputs.shape[1:]))

    def column(e: Array) -> Array:
        return likelihood.hessian_mv(outputs, target, jnp.broadcast_to(e, outputs.shape))

    return jnp.moveaxis(jax.vmap(column)(basis).reshape(size, outputs.shape[0], count, size), 0, -1)
