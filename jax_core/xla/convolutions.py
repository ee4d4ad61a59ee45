"""A user's convolutions and sums over windows as matrix products and sums of slices, where XLA's CPU backend is slow.

On that backend a convolution's derivative under ``vmap`` (the Jacobian of each example) becomes one with groups, 20 to
30 times slower than a product of unfolded images; a convolution in a compiled loop falls back to a slow kernel; and
sums over windows take several times what the sum of as many strided slices takes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jax_core.types import ModelFn, Params, pytree
from jax_core.xla.backend import platform
from jax_core.xla.compiled import as_jit_argument
from jax_core.xla.interpret import interpret

UNFOLDED = 2**20  # elements of one example's unfolded image from which XLA's convolution is the faster one
_WINDOW = 64  # slices in a sum at most


def with_fast_convolutions(model_fn: ModelFn) -> ModelFn:
    """The model with its convolutions and window sums rewritten on the CPU; the same function up to rounding.

    A model whose type says ``chosen_lowerings = True`` has chosen them itself and stays as it is.
    """
    if platform() != "cpu" or getattr(model_fn, "chosen_lowerings", False):
        return model_fn
    return Rewritten(as_jit_argument(model_fn))


@pytree
@dataclass(frozen=True)
class Rewritten:
    """A model that is traced, and run with what :func:`with_fast_convolutions` replaces."""

    model_fn: Callable[..., Any]
    chosen_lowerings = True

    def __call__(self, input: Any, params: Params) -> Any:
        """The model's output."""
        closed, shape = jax.make_jaxpr(self.model_fn, return_shape=True)(input, params)
        names = {equation.primitive.name for equation in closed.jaxpr.eqns}
        if not names & {"conv_general_dilated", "reduce_window_sum", "jit", "pjit"}:
            return self.model_fn(input, params)
        results = interpret(closed.jaxpr, closed.consts, jax.tree.leaves((input, params)), _replace)
        return jax.tree.unflatten(jax.tree.structure(shape), results)


def _replace(equation: Any, operands: list[Any], evaluate: Callable[[], list[Any]]) -> list[Any]:
    options = equation.params
    if equation.primitive.name == "conv_general_dilated" and _unfolds(options, *operands):
        return [_convolve(options, *operands)]
    if equation.primitive.name == "reduce_window_sum" and _slices_well(options):
        return [_window_sum(options, *operands)]
    return evaluate()


def _unfolds(options: dict[str, Any], x: Array, kernel: Array) -> bool:
    plain = options["feature_group_count"] == options["batch_group_count"] == 1 and set(options["lhs_dilation"]) <= {1}
    numbers = options["dimension_numbers"]
    if not plain or len(numbers.rhs_spec) == 2:
        return False
    sizes = [x.shape[axis] + sum(pad) for axis, pad in zip(numbers.lhs_spec[2:], options["padding"], strict=True)]
    window = [kernel.shape[axis] for axis in numbers.rhs_spec[2:]]
    positions = math.prod(_counts(sizes, window, options["window_strides"], options["rhs_dilation"]))
    return positions * kernel.size // kernel.shape[numbers.rhs_spec[0]] <= UNFOLDED


def _convolve(options: dict[str, Any], x: Array, kernel: Array) -> Array:
    """Shifted slices beside each other along the channels, then one matrix product."""
    numbers = options["dimension_numbers"]
    batch, channel, *spatial = numbers.lhs_spec
    out, into, *window = numbers.rhs_spec
    x = jnp.transpose(x, (batch, *spatial, channel))
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((lo, hi, 0) for lo, hi in options["padding"]), (0, 0, 0)])
    extents = [kernel.shape[axis] for axis in window]
    slices = window_slices(x, (1, *extents, 1), (1, *options["window_strides"], 1), (1, *options["rhs_dilation"], 1))
    unfolded = slices[0] if len(slices) == 1 else jnp.concatenate(slices, -1)  # (N, *out, K * C)
    matrix = jnp.transpose(kernel, (*window, into, out)).reshape(-1, kernel.shape[out])
    product = lax.dot_general(
        unfolded,
        matrix,
        (((unfolded.ndim - 1,), (0,)), ((), ())),
        precision=options["precision"],
        preferred_element_type=options["preferred_element_type"],
    )
    axes = numbers.out_spec[0], *numbers.out_spec[2:], numbers.out_spec[1]
    return jnp.transpose(product, [axes.index(i) for i in range(len(axes))])


def _slices_well(options: dict[str, Any]) -> bool:
    return set(options["base_dilation"]) <= {1} and math.prod(options["window_dimensions"]) <= _WINDOW


def _window_sum(options: dict[str, Any], x: Array) -> Array:
    x = lax.pad(x, jnp.zeros((), x.dtype), [(lo, hi, 0) for lo, hi in options["padding"]])
    slices = window_slices(x, options["window_dimensions"], options["window_strides"], options["window_dilation"])
    return sum(slices[1:], slices[0])


def _counts(sizes: Sequence[int], window: Sequence[int], strides: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """Positions of a window along each axis."""
    return [(n - d * (w - 1) - 1) // s + 1 for n, w, s, d in zip(sizes, window, strides, dilation, strict=True)]


def window_slices(x: Array, window: Sequence[int], strides: Sequence[int], dilation: Sequence[int]) -> list[Array]:
    """What each position of the window sees of ``x``, in row-major order."""
    sizes = _counts(x.shape, window, strides, dilation)
    found = []
    for at in itertools.product(*map(range, window)):
        start = [i * d for i, d in zip(at, dilation, strict=True)]
        limits = [a + (n - 1) * s + 1 for a, n, s in zip(start, sizes, strides, strict=True)]
        found.append(lax.slice(x, start, limits, strides))
    return found
