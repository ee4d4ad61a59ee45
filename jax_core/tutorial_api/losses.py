"""Gradients and Hessian products of a loss with respect to one sample's output, by the loss's name.

`"mse"` is half the squared error here, whose Hessian is the identity. laplax's is the squared error: its Hessian and
GGN are twice ours, its gradient twice, its empirical Fisher four times.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_core.likelihoods import Categorical, as_likelihood, score


def create_loss_hessian_mv(loss_fn: Any) -> Callable[[Array, Array, Any], Array]:
    r"""$v \mapsto \nabla_f^2 \ell(f, y)\, v$ of one sample.

    Args:
        loss_fn: `"cross_entropy"`, `"mse"` (half the squared error), `"binary_cross_entropy"`, `"none"`, a callable
            `loss(output, target)` of one sample, or a likelihood.

    Returns:
        `(jv, pred, target) -> H jv`, shaped like `pred`; a loss by name can do without the target.

    Raises:
        ValueError: If the name of the loss is unknown.
        TypeError: From the product, without the target that a loss of one's own needs.
    """
    likelihood = as_likelihood(loss_fn)

    def hessian_mv(jv: Array, pred: Array, target: Any = None) -> Array:
        if target is None:
            if not isinstance(loss_fn, str):
                raise TypeError("This Hessian depends on the target: give target=.")
            target = jnp.zeros((), int) if isinstance(likelihood, Categorical) else jnp.zeros_like(pred)
        return likelihood.hessian_mv(_batch(pred), _batch(target), _batch(jv))[0]

    return hessian_mv


def create_loss_gradient(loss_fn: Any) -> Callable[[Array, Any], Array]:
    r"""$\nabla_f \ell(f, y)$ of one sample, `(pred, target) -> gradient`; the loss as in `create_loss_hessian_mv`."""
    likelihood = as_likelihood(loss_fn)
    return lambda pred, target: score(likelihood, _batch(pred), _batch(target))[0]


def full_prec_to_scale(prec: Float[Array, "P P"]) -> Float[Array, "P P"]:
    r"""The lower triangular $L$ with $L L^\top = A^{-1}$ of a positive definite precision $A$; no inverse is formed.

    A Cholesky factor in reversed order, $A = U U^\top$ with $U$ upper triangular, gives $L = U^{-\top}$.
    """
    upper = jnp.flip(jnp.linalg.cholesky(jnp.flip(prec)))
    eye = jnp.eye(prec.shape[-1], dtype=prec.dtype)
    return jax.scipy.linalg.solve_triangular(upper, eye, trans=1, lower=False)


def _batch(values: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], values)
