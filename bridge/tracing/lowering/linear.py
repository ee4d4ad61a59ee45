"""Matrix products."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import torch
from jaxtyping import Array

from bridge.tracing.lowering.registry import lowers

aten = torch.ops.aten


@lowers(aten.linear.default)
def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    r"""$x W^\top + b$."""
    out = jnp.matmul(x, weight.T)
    return out if bias is None else out + bias


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
