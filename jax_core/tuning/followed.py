r"""How far a network has followed the targets that it was trained on, from the gradient that is left.

A posterior takes the network for the minimum of loss and prior: along an eigenvector of $G$ with the eigenvalue $s_k$,
outputs have followed noise in the targets by $h_k = \tfrac{s_k}{s_k + \tau}$, together $\gamma = \sum_k h_k$ effective
parameters. A network that was trained for a few epochs has not come there, and loses less on new data than $\gamma$
says. The gradient of the summed loss knows: targets drawn from the network's probabilities give it the variance $s_k$,
of which what has not been followed is left, $(1 - h_k)^2 s_k$. At a minimum it is zero, whatever the data; with
$\mathbb E\, g_k^2 = s_k$ nothing of the noise has been followed.

Eigenvectors are not needed. Minus the slopes in $\log t$ of $\operatorname{tr} G (G + t)^{-1}$ and of
$g^\top (G + t)^{-1} g$ are the sums of $s_k$ and of $g_k^2$ over a window around $s_k = t$, a decade wide; their ratio
is what is left there.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_core.operators import Operator, Symmetric
from jax_core.posterior import Posterior
from jax_core.tuning.optimism import effective_parameters
from jax_core.xla.precision import full_precision

LEAST_SHARE = 0.5
"""Of the samples trained on that a gradient must be of: what is left of fewer says little about all."""

_HALVES = np.arange(-4, 13)  # decades of t over tau, doubled


def followed_parameters(
    curvature: Operator, precision: float, gradient: Float[Array, " P"], *, share: float = 1.0
) -> float:
    r"""$\sum_k \min\bigl(\tfrac{s_k}{s_k + \tau}, 1 - \sqrt{g_k^2 / s_k}\bigr)$, band by band: at most $\gamma$.

    Args:
        curvature: $G$.
        precision: $\tau$.
        gradient: $g$, of the summed loss over the samples that the curvature stands for; of a share $f$ of them, times
            $1 / \sqrt f$. Such a gradient keeps $1 - f + f (1 - h_k)^2$ of its variance.
        share: $f$, from a half to one.
    """
    if isinstance(curvature, Symmetric):  # one decomposition for all bands
        curvature = curvature.eigenpairs
    edges = precision * 10.0 ** (_HALVES / 2)
    sizes = np.array([effective_parameters(curvature, edge) for edge in edges])
    total = float(sizes[_HALVES == 0][0])
    squares = np.array([float(_squared(curvature, jnp.asarray(edge, gradient.dtype), gradient)) for edge in edges])
    sizes, squares = np.maximum(-np.diff(sizes), 0.0), np.maximum(-np.diff(squares), 0.0)
    middle = np.sqrt(edges[1:] * edges[:-1])
    assumed = middle / (middle + precision)
    left = 1 - (1 - squares / np.maximum(sizes, 1e-30)) / share
    followed = np.minimum(assumed, 1 - np.sqrt(np.clip(left, 0.0, 1.0)))
    return total * float((followed * sizes).sum() / max((assumed * sizes).sum(), 1e-30))


@jax.jit
@full_precision
def _squared(curvature: Operator, precision: Array, gradient: Array) -> Float[Array, ""]:
    return gradient @ Posterior.create(None, curvature, precision).cov_flat(gradient)
