"""Gradients of predictions with respect to the input, for torch's autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import torch

from bridge.tensors import to_jax, to_torch
from bridge.wide_types import wide_types
from jax_core.xla.pullback import PullBack


def wants_gradient(inputs: Any) -> bool:
    """Whether torch records, and an input asks for a gradient."""
    return torch.is_grad_enabled() and any(leaf.requires_grad for leaf in jax.tree.leaves(inputs))


def differentiable(function: Callable[[Any], tuple[Any, PullBack]], inputs: Any, arrays: Any) -> Any:
    """What a function of JAX arrays gives, so that torch can differentiate it once by the tensors behind them.

    The backward pass is the vector-Jacobian product of the function itself, curvature and all; a second derivative is
    refused.

    Args:
        function: From arrays to a tree of arrays and its pull-back, see :mod:`jax_core.xla.pullback`.
        inputs: Tensors; integers among them get no gradient.
        arrays: The same values as arrays that ``function`` takes.
    """
    parts: list[Any] = []
    found = _Through.apply(function, arrays, parts, *jax.tree.leaves(inputs))
    assert isinstance(found, tuple)
    return jax.tree.unflatten(parts[0], found)


def without_second(gradients: Sequence[torch.Tensor | None], inputs: Sequence[torch.Tensor]) -> list[Any]:
    """First derivatives whose own derivative by ``inputs`` raises ``RuntimeError``, where torch records one."""
    if not torch.is_grad_enabled():
        return list(gradients)
    return [None if gradient is None else _First.apply(gradient, *inputs) for gradient in gradients]


class _First(torch.autograd.Function):
    """A gradient that is the last: torch would take it for a constant otherwise."""

    @staticmethod
    def forward(ctx: Any, gradient: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise RuntimeError(
            "This is differentiated twice, and a Laplace gives torch first derivatives alone. Leave create_graph=True "
            "out, or detach the gradient."
        )


class _Through(torch.autograd.Function):
    """A function of JAX arrays as a node of torch's graph."""

    @staticmethod
    def forward(ctx: Any, function: Any, arrays: Any, parts: list[Any], *leaves: torch.Tensor) -> Any:
        outputs, ctx.pull = function(arrays)
        found, shape = jax.tree.flatten(outputs)
        parts.append(shape)
        ctx.shape, ctx.wide = shape, jax.config.read("jax_enable_x64")
        ctx.floating, ctx.dtypes = [leaf.is_floating_point() for leaf in leaves], [out.dtype for out in found]
        ctx.places = [out.sharding for out in found]  # the inputs may come from the host
        ctx.like = [(leaf.device, leaf.dtype) for leaf in leaves]
        ctx.save_for_backward(*leaves)
        first = leaves[0]
        dtype = first.dtype if first.is_floating_point() else None
        # copies: a result may be written to in place, and the backward pass may hold the arrays
        return tuple(to_torch(out).to(device=first.device, dtype=dtype, copy=True) for out in found)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        with wide_types(ctx.wide):  # torch calls this outside of the method that made the graph
            given = [
                jax.device_put(jnp.asarray(to_jax(cotangent.detach().contiguous())), place).astype(dtype)
                for cotangent, dtype, place in zip(grad_outputs, ctx.dtypes, ctx.places, strict=True)
            ]
            pulled = iter(ctx.pull(jax.tree.unflatten(ctx.shape, given)))
            gradients = [
                to_torch(next(pulled)).to(*like) if floating else None
                for floating, like in zip(ctx.floating, ctx.like, strict=True)
            ]
        return None, None, None, *without_second(gradients, (*grad_outputs, *ctx.saved_tensors))
