"""Hold a traced model against torch: outputs, and gradients with a random cotangent."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Container, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import torch
from torch.utils import _pytree as torch_pytree

from bridge.placement import compiling_for, place_of
from bridge.tensors import to_jax
from bridge.tracing.comparison import norm, relative_error
from bridge.tracing.errors import MismatchError
from bridge.tracing.inputs import Inputs, split_arrays
from bridge.tracing.outputs import plain
from bridge.tracing.traced_model import TracedModel
from jax_core.xla.backend import platform

# of outputs and of gradients; torch's own derivatives of hardsigmoid and celu hold float32 constants, 3e-8 off
_TOLERANCE = {
    torch.float64: (1e-9, 1e-7),
    torch.float32: (1e-4, 1e-4),
    torch.float16: (2e-2, 5e-2),
    torch.bfloat16: (1e-1, 2e-1),
}
_OWN_ROUNDING = 1e-2  # of torch's gradients, above which it is no measure for others'
_ROUNDINGS, _DRAWS = 4.0, 5  # how far weights are moved to see it, in units of the dtype's epsilon, and how often
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Relative errors of a traced model on one batch."""

    outputs: float
    gradients: float
    worst: str
    """The parameter whose gradient is furthest off."""

    def within(self, dtype: torch.dtype) -> bool:
        """Whether both errors are no more than rounding in `dtype` explains (a NaN is)."""
        outputs, gradients = _TOLERANCE[dtype]
        return self.outputs <= outputs and self.gradients <= gradients

    def __str__(self) -> str:
        return f"outputs {self.outputs:.1e}, gradients {self.gradients:.1e} (worst: {self.worst or 'none'})"


@dataclasses.dataclass(frozen=True)
class Results:
    """Outputs on one batch, and gradients with cotangents: torch's as tensors, a traced model's as arrays."""

    outputs: list[Any]
    gradients: dict[str, Any]


def verify(
    traced: TracedModel,
    model: torch.nn.Module,
    inputs: Inputs,
    trace: Callable[[torch.nn.Module, Inputs], TracedModel],
) -> None:
    """Raise `MismatchError` where the traced model is not the torch model.

    Networks with kinks amplify the rounding of float32: outputs agree and gradients do not, torch's own neither. So
    gradients no more than twice as far from torch's in float64 as torch's own, for weights moved by rounding, are
    accepted; any other mismatch is judged again in float64, on copies of the model and the trace.
    """
    wanted, cotangents = _torch_results(model, inputs, traced.params)
    got = _traced_results(traced, inputs, cotangents)
    comparison, dtype = _compare(got, wanted), compute_dtype(model, inputs)
    if comparison.within(dtype):
        return
    again = ""
    if dtype is not torch.float64:
        double, single, inputs = copy.deepcopy(model).double(), inputs, _double(inputs)
        exact, cotangents = _torch_results(double, inputs, traced.params, cotangents)
        ours = _compare(got, exact)
        for rounded in itertools.chain([wanted], _rounded(model, single, traced.params, cotangents)):
            if _is_rounding(comparison, dtype, ours, _compare(rounded, exact)):
                return
        with jax.enable_x64(True):
            in_double = _compare(_traced_results(trace(double, inputs), inputs, cotangents), exact)
        if in_double.within(torch.float64):
            return
        again = f" In float64: {in_double}."
    raise MismatchError(
        f"The traced model differs from torch by more than {_TOLERANCE[dtype][0]:.0e} in {dtype}: {comparison}.{again} "
        "bridge.explain(model, inputs) shows where the difference begins; verify=False accepts it."
    )


def _rounded(
    model: torch.nn.Module, inputs: Inputs, names: Container[str], cotangents: list[torch.Tensor]
) -> Iterator[Results]:
    """Torch's results for weights moved by a few roundings: which kinks fall to the other side is chance."""
    moved, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    for _ in range(_DRAWS):
        with torch.no_grad():
            for p, weight in zip(moved.parameters(), model.parameters(), strict=True):
                if p.is_floating_point():
                    noise = torch.randn(p.shape, generator=generator).to(p)
                    p.copy_(weight * (1 + _ROUNDINGS * torch.finfo(p.dtype).eps * noise))
        yield _torch_results(moved, inputs, names, cotangents)[0]


def _is_rounding(comparison: Comparison, dtype: torch.dtype, ours: Comparison, torchs: Comparison) -> bool:
    """Whether gradients are off by what rounding in `dtype` does to torch's own; `ours`, `torchs` are to float64's."""
    agree = comparison.outputs <= _TOLERANCE[dtype][0]
    return agree and ours.gradients <= 2 * torchs.gradients <= 2 * _OWN_ROUNDING


def _compare(got: Results, wanted: Results) -> Comparison:
    if len(got.outputs) != len(wanted.outputs):
        raise MismatchError(f"torch returns {len(wanted.outputs)} tensors, the traced model {len(got.outputs)}.")
    pairs = zip(got.outputs, wanted.outputs, strict=True)
    errors = [relative_error(a, b, floor=1e-6 * b.numel() ** 0.5) for a, b in pairs]
    largest = max((norm(g) for g in wanted.gradients.values()), default=0.0)
    slopes = {
        name: relative_error(got.gradients[name], g, floor=1e-3 * largest) for name, g in wanted.gradients.items()
    }
    worst = max(slopes, key=lambda name: slopes[name], default="")
    return Comparison(max(errors, default=0.0), slopes.get(worst, 0.0), worst)


def compute_dtype(model: torch.nn.Module, inputs: Inputs) -> torch.dtype:
    """The coarsest floating dtype among parameters and inputs, which limits what agreement can be asked for."""
    tensors = [*model.parameters(), *(x for x in torch_pytree.tree_leaves(inputs) if isinstance(x, torch.Tensor))]
    found = {tensor.dtype for tensor in tensors}
    return next((dtype for dtype in reversed(_FLOATS) if dtype in found), torch.float32)


def _traced_results(traced: TracedModel, inputs: Inputs, cotangents: list[torch.Tensor]) -> Results:
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    arrays, join = split_arrays(tuple(to_jax(x) for x in given))

    def both(buffers: Any, params: Any, cotangents: Any, arrays: Any) -> Any:
        def floats(params: Any) -> Any:
            leaves = [
                x for x in jax.tree.leaves(traced.function(buffers, params, *join(arrays))) if hasattr(x, "dtype")
            ]
            return [x for x in leaves if jnp.issubdtype(x.dtype, jnp.inexact)], leaves

        _, pullback, leaves = jax.vjp(floats, params, has_aux=True)
        return leaves, pullback(cotangents)[0]

    # compiled once for a single call: leave out the optimisation that a user's own jit will do
    cheap = {
        "cpu": {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True},
        "gpu": {"xla_gpu_autotune_level": 0},
    }
    with compiling_for(place_of((traced.params, traced.buffers))):
        run = jax.jit(both, compiler_options=cheap.get(platform()))
        return Results(*run(traced.buffers, traced.params, [to_jax(c) for c in cotangents], arrays))


def _cotangents(outputs: list[torch.Tensor]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)  # never touch torch's global random state
    return [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) for x in outputs]


def _torch_results(
    model: torch.nn.Module, inputs: Inputs, names: Container[str], cotangents: list[torch.Tensor] | None = None
) -> tuple[Results, list[torch.Tensor]]:
    """What torch gives for the named parameters, and the cotangents: random, or those given in the outputs' dtype."""
    given = model(*inputs) if isinstance(inputs, tuple) else model(**inputs)
    outputs = [leaf for leaf in torch_pytree.tree_leaves(plain(given)) if isinstance(leaf, torch.Tensor)]
    floats = [x for x in outputs if x.is_floating_point() or x.is_complex()]
    drawn = (
        _cotangents(floats) if cotangents is None else [c.to(x.dtype) for c, x in zip(cotangents, floats, strict=True)]
    )
    params = {name: p for name, p in model.named_parameters() if name in names}
    pairs = [(x, c) for x, c in zip(floats, drawn, strict=True) if x.requires_grad]
    gradients: dict[str, Any] = {}
    if params and pairs:
        ends, starts = zip(*pairs, strict=True)
        grads = torch.autograd.grad(ends, list(params.values()), starts, allow_unused=True, materialize_grads=True)
        gradients = dict(zip(params, grads, strict=True))
    return Results([x.detach() for x in outputs], gradients), drawn


def _double(inputs: Inputs) -> Inputs:
    def double(x: Any) -> Any:
        return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x

    return torch_pytree.tree_map(double, inputs)
