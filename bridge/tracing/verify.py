"""Hold a traced model against torch: outputs, and gradients with a random cotangent."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.utils import _pytree as torch_pytree

from bridge.tensors import to_jax
from bridge.tracing.errors import MismatchError
from bridge.tracing.inputs import Inputs, split_arrays
from bridge.tracing.outputs import plain
from bridge.tracing.traced_model import TracedModel

# of outputs and of gradients; torch's own derivatives of hardsigmoid and celu hold float32 constants, 3e-8 off
_TOLERANCE = {
    torch.float64: (1e-9, 1e-7),
    torch.float32: (1e-4, 1e-4),
    torch.float16: (2e-2, 5e-2),
    torch.bfloat16: (1e-1, 2e-1),
}
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


def verify(
    traced: TracedModel,
    model: torch.nn.Module,
    inputs: Inputs,
    trace: Callable[[torch.nn.Module, Inputs], TracedModel],
) -> None:
    """Raise `MismatchError` where the traced model is not the torch model.

    Networks with kinks amplify the rounding of float32, so a mismatch there is judged again in float64, on copies
    of the model and the trace.
    """
    comparison = compare(traced, model, inputs)
    dtype = compute_dtype(model, inputs)
    if comparison.within(dtype):
        return
    again = ""
    if dtype is not torch.float64:
        double, inputs = copy.deepcopy(model).double(), _double(inputs)
        with jax.enable_x64(True):
            in_double = compare(trace(double, inputs), double, inputs)
        if in_double.within(torch.float64):
            return
        again = f" In float64: {in_double}."
    raise MismatchError(
        f"The traced model differs from torch by more than {_TOLERANCE[dtype][0]:.0e} in {dtype}: {comparison}.{again} "
        "bridge.explain(model, inputs) shows where the difference begins; verify=False accepts it."
    )


def compare(traced: TracedModel, model: torch.nn.Module, inputs: Inputs) -> Comparison:
    """The relative errors of the traced model's outputs and gradients on `inputs`."""
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    outputs = model(*inputs) if isinstance(inputs, tuple) else model(**inputs)
    reference = [leaf for leaf in torch_pytree.tree_leaves(plain(outputs)) if isinstance(leaf, torch.Tensor)]
    cotangents = _cotangents(reference)
    wanted = _gradients(model, traced, reference, cotangents)
    arrays = [to_jax(c) for c in cotangents]
    got, gradients = _run(traced, tuple(to_jax(x) for x in given), arrays)
    if len(got) != len(reference):
        raise MismatchError(f"torch returns {len(reference)} tensors, the traced model {len(got)}.")
    errors = [_error(a, b.detach(), floor=1e-6 * b.numel() ** 0.5) for a, b in zip(got, reference, strict=True)]
    largest = max((float(np.linalg.norm(_numpy(g))) for g in wanted.values()), default=0.0)
    slopes = {name: _error(gradients[name], g, floor=1e-3 * largest) for name, g in wanted.items()}
    worst = max(slopes, key=lambda name: slopes[name], default="")
    return Comparison(max(errors, default=0.0), slopes.get(worst, 0.0), worst)


def compute_dtype(model: torch.nn.Module, inputs: Inputs) -> torch.dtype:
    """The coarsest floating dtype among parameters and inputs, which limits what agreement can be asked for."""
    tensors = [*model.parameters(), *(x for x in torch_pytree.tree_leaves(inputs) if isinstance(x, torch.Tensor))]
    found = {tensor.dtype for tensor in tensors}
    return next((dtype for dtype in reversed(_FLOATS) if dtype in found), torch.float32)


def _run(traced: TracedModel, inputs: tuple[Any, ...], cotangents: list[Any]) -> tuple[list[Any], Any]:
    arrays, join = split_arrays(inputs)

    def both(buffers: Any, params: Any, cotangents: Any, arrays: Any) -> Any:
        def floats(params: Any) -> Any:
            leaves = [
                x for x in jax.tree.leaves(traced.function(buffers, params, *join(arrays))) if hasattr(x, "dtype")
            ]
            return [x for x in leaves if jnp.issubdtype(x.dtype, jnp.inexact)], leaves

        _, pullback, leaves = jax.vjp(floats, params, has_aux=True)
        return leaves, pullback(cotangents)[0]

    # compiled once for a single call: leave out the optimisation that a user's own jit will do
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    cpu = jax.default_backend() == "cpu"
    return jax.jit(both, compiler_options=options if cpu else None)(traced.buffers, traced.params, cotangents, arrays)


def _cotangents(outputs: list[torch.Tensor]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)  # never touch torch's global random state
    return [
        torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype).to(x.device)
        for x in outputs
        if x.is_floating_point() or x.is_complex()
    ]


def _gradients(
    model: torch.nn.Module, traced: TracedModel, outputs: list[torch.Tensor], cotangents: list[torch.Tensor]
) -> dict[str, torch.Tensor]:
    params = {name: p for name, p in model.named_parameters() if name in traced.params}
    floats = [x for x in outputs if x.is_floating_point() or x.is_complex()]
    pairs = [(x, c) for x, c in zip(floats, cotangents, strict=True) if x.requires_grad]
    if not params or not pairs:
        return {}
    grads = torch.autograd.grad(
        [x for x, _ in pairs], list(params.values()), [c for _, c in pairs], allow_unused=True, materialize_grads=True
    )
    return dict(zip(params, grads, strict=True))


def _error(got: Any, wanted: torch.Tensor, floor: float = 0.0) -> float:
    a, b = np.asarray(got), _numpy(wanted)
    if a.shape != b.shape:
        return np.inf
    if a.dtype.kind in "biu":
        return 0.0 if np.array_equal(a, b) else np.inf
    a, b = a.astype(np.result_type(a.dtype, np.float64)), b
    difference = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0, a - b)
    norm, scale = float(np.linalg.norm(difference)), max(float(np.linalg.norm(b[np.isfinite(b)])), floor)
    return norm / scale if scale else norm


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu().resolve_conj()
    if tensor.is_floating_point():
        tensor = tensor.double()
    return tensor.numpy()


def _double(inputs: Inputs) -> Inputs:
    double = lambda x: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x  # noqa: E731
    return torch_pytree.tree_map(double, inputs)
