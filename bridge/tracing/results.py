"""Outputs and gradients of a model, by torch and by its traced function."""

from __future__ import annotations

import dataclasses
from collections.abc import Container
from typing import Any

import jax
import jax.numpy as jnp
import torch
from torch.utils import _pytree as torch_pytree

from bridge.placement import compiling_for, place_of
from bridge.tensors import to_jax
from bridge.tracing.errors import TraceError
from bridge.tracing.inputs import Inputs, split_arrays
from bridge.tracing.outputs import plain
from bridge.tracing.state import cloned
from bridge.tracing.traced_model import TracedModel
from jax_core.xla.backend import platform

# programs are compiled for a single call: leave out the optimisation that a user's own jit will do
_CHEAP = {
    "cpu": {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True},
    "gpu": {"xla_gpu_autotune_level": 0},
}


@dataclasses.dataclass(frozen=True)
class Results:
    """Outputs on one batch, and gradients with cotangents: torch's as tensors, a traced model's as arrays."""

    outputs: list[Any]
    gradients: dict[str, Any]


def torch_results(
    model: torch.nn.Module, inputs: Inputs, names: Container[str], cotangents: list[torch.Tensor] | None = None
) -> tuple[Results, list[torch.Tensor]]:
    """What torch gives for the named parameters, and the cotangents: random, or those given in the outputs' dtype."""
    given: Any = cloned(inputs if isinstance(inputs, tuple) else dict(inputs))  # a forward may write to its inputs
    try:
        got = model(*given) if isinstance(given, tuple) else model(**given)
    except Exception as error:  # whatever the model's own code raises
        raise TraceError(f"Torch itself fails on the example: {type(error).__name__}: {error}") from error
    outputs = [leaf for leaf in torch_pytree.tree_leaves(plain(got)) if isinstance(leaf, torch.Tensor)]
    floats = [x for x in outputs if x.is_floating_point() or x.is_complex()]
    drawn = (
        _cotangents(floats) if cotangents is None else [c.to(x.dtype) for c, x in zip(cotangents, floats, strict=True)]
    )
    params = {name: p for name, p in model.named_parameters() if name in names}
    pairs = [(x, c) for x, c in zip(floats, drawn, strict=True) if x.requires_grad]
    gradients: dict[str, Any] = {name: torch.zeros_like(p) for name, p in params.items()}
    if params and pairs:
        ends, starts = zip(*pairs, strict=True)
        try:
            grads = torch.autograd.grad(ends, list(params.values()), starts, allow_unused=True, materialize_grads=True)
        except RuntimeError as error:
            raise TraceError(f"Torch itself cannot take the gradients to compare with: {error}") from error
        # an embedding may want sparse ones
        gradients = {k: g if g.layout is torch.strided else g.to_dense() for k, g in zip(params, grads, strict=True)}
    return Results([x.detach() for x in outputs], gradients), drawn


def traced_results(
    traced: TracedModel, inputs: Inputs, cotangents: list[torch.Tensor], *, cheap: bool = True
) -> Results:
    """What the traced function gives, in one program; optimised as a user's own unless `cheap`."""
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    arrays, join = split_arrays(tuple(to_jax(x) for x in given))

    def both(buffers: Any, params: Any, cotangents: Any, arrays: Any) -> Any:
        def floats(params: Any) -> Any:
            leaves = [
                x for x in jax.tree.leaves(traced.function(buffers, params, *join(arrays))) if hasattr(x, "dtype")
            ]
            return [x for x in leaves if jnp.issubdtype(x.dtype, jnp.inexact)], leaves

        ends, pullback, leaves = jax.vjp(floats, params, has_aux=True)
        if [(x.shape, x.dtype) for x in ends] != [(c.shape, c.dtype) for c in cotangents]:
            return leaves, params  # outputs of other shapes tell enough
        return leaves, pullback(cotangents)[0]

    with compiling_for(place_of((traced.params, traced.buffers))):
        run = jax.jit(both, compiler_options=_CHEAP.get(platform()) if cheap else None)
        return Results(*run(traced.buffers, traced.params, [to_jax(c) for c in cotangents], arrays))


def _cotangents(outputs: list[torch.Tensor]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)  # never touch torch's global random state
    return [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) for x in outputs]
