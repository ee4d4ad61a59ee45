"""Matrix products."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import torch
from jaxtyping import Array

from bridge.tracing.lowering.reduction import vector_norm
from bridge.tracing.lowering.registry import lowers, spread

aten = torch.ops.aten


@lowers(aten.linear.default)
def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    r"""$x W^\top + b$."""
    out = jnp.matmul(x, weight.T)
    return out if bias is None else out + spread(bias, out.shape)


@lowers(aten.mm.default, aten.bmm.default, aten.matmul.default, aten.mv.default, aten.dot.default)
def matmul(x: Array, other: Array) -> Array:
    """The matrix product, batched where there are more axes."""
    return jnp.matmul(x, other)


@lowers(aten.addmm.default, aten.baddbmm.default, aten.addmv.default)
def addmm(bias: Array, a: Array, b: Array, *, beta: float = 1, alpha: float = 1) -> Array:
    r"""$\beta\,c + \alpha\,a b$."""
    out = jnp.matmul(a, b)
    out = out if alpha == 1 else alpha * out
    return out if beta == 0 else out + (bias if beta == 1 else beta * bias)


@lowers(aten.einsum.default)
def einsum(equation: str, tensors: Sequence[Array], path: object = None) -> Array:
    """The sum of products over named axes."""
    return jnp.einsum(equation.replace(" ", ""), *tensors)


@lowers(aten.bilinear.default)
def bilinear(a: Array, b: Array, weight: Array, bias: Array | None = None) -> Array:
    r"""$a^\top W_o\, b$ for every output $o$."""
    out = jnp.einsum("...i,oij,...j->...o", a, weight, b)
    return out if bias is None else out + bias


@lowers(aten._cdist_forward.default)
def cdist(a: Array, b: Array, p: float, compute_mode: int | None = None) -> Array:
    """Distances between all rows of `a` and all rows of `b`."""
    return vector_norm(a[..., :, None, :] - b[..., None, :, :], p, -1)


@lowers(aten.linalg_inv.default)
def inv(x: Array) -> Array:
    """The inverse."""
    return jnp.linalg.inv(x)


@lowers(aten.linalg_solve.default)
def solve(a: Array, b: Array, *, left: bool = True) -> Array:
    """The solution of $A X = B$, or of $X A = B$."""
    if a.ndim - 1 == b.ndim and a.shape[:-1] == b.shape:
        return jnp.linalg.solve(a, b[..., None])[..., 0]
    return jnp.linalg.solve(a, b) if left else jnp.linalg.solve(a.mT, b.mT).mT


@lowers(aten.linalg_cholesky.default)
def cholesky(x: Array, *, upper: bool = False) -> Array:
    """The Cholesky factor."""
    lower = jnp.linalg.cholesky(x.mT if upper else x)
    return lower.mT if upper else lower


@lowers(aten.linalg_householder_product.default)
def householder_product(x: Array, tau: Array) -> Array:
    """The first columns of a product of reflections, kept below the diagonal of `x` and in `tau`."""
    rows, columns = jnp.arange(x.shape[-2]), tau.shape[-1]
    found = jnp.broadcast_to(jnp.eye(*x.shape[-2:], dtype=x.dtype), x.shape)
    for i in reversed(range(columns)):
        vector = jnp.where(rows > i, x[..., i], (rows == i).astype(x.dtype))[..., None]
        found = found - tau[..., i, None, None] * vector * (vector.mT @ found)
    return found


@lowers(aten.linalg_det.default)
def det(x: Array) -> Array:
    """The determinant."""
    return jnp.linalg.det(x)


@lowers(aten.linalg_slogdet.default)
def slogdet(x: Array) -> tuple[Array, Array]:
    """The sign and the logarithm of the determinant."""
    sign, logdet = jnp.linalg.slogdet(x)
    return sign, logdet


@lowers(aten.linalg_matrix_exp.default)
def matrix_exp(x: Array) -> Array:
    """The matrix exponential."""
    return jax.scipy.linalg.expm(x)
