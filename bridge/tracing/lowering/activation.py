"""Activation functions, with torch's derivatives at the kinks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import torch
from jaxtyping import Array

from bridge.tracing.lowering.registry import ChannelsLast, lowers

aten = torch.ops.aten


@lowers(aten.relu.default, layout="elementwise")
def relu(x: Array) -> Array:
    r"""$\max(x, 0)$ with derivative zero at zero."""
    return jax.nn.relu(x)


@lowers(aten.gelu.default, layout="elementwise")
def gelu(x: Array, approximate: str = "none") -> Array:
    r"""$x\,\Phi(x)$, exact by default, or by the tanh formula."""
    return jax.nn.gelu(x, approximate=approximate == "tanh")


@lowers(aten.silu.default, layout="elementwise")
def silu(x: Array) -> Array:
    r"""$x\,\sigma(x)$."""
    return jax.nn.silu(x)


@lowers(aten.mish.default, layout="elementwise")
def mish(x: Array) -> Array:
    r"""$x \tanh(\operatorname{softplus}(x))$."""
    return x * jnp.tanh(jax.nn.softplus(x))


@lowers(aten.elu.default, layout="elementwise")
def elu(x: Array, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Array:
    r"""$s\,x$ for positive $x$, else $s\,\alpha (e^{i x} - 1)$."""
    below = x <= 0  # false for NaN, which stays
    negative = scale * alpha * jnp.expm1(jnp.where(below, x, 0) * input_scale)  # no overflow in the branch not taken
    return jnp.where(below, negative, scale * x)


@lowers(aten.celu.default, layout="elementwise")
def celu(x: Array, alpha: float = 1) -> Array:
    r"""$x$ for positive $x$, else $\alpha (e^{x / \alpha} - 1)$."""
    return elu(x, alpha, 1, 1 / alpha)


@lowers(aten.selu.default, layout="elementwise")
def selu(x: Array) -> Array:
    """The scaled ELU of arXiv:1706.02515."""
    return elu(x, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946)


@lowers(aten.leaky_relu.default, layout="elementwise")
def leaky_relu(x: Array, negative_slope: float = 0.01) -> Array:
    """$x$ for positive $x$, else $a x$."""
    return jnp.where(x > 0, x, negative_slope * x)


@lowers(aten.rrelu.default, layout="elementwise")
def rrelu(x: Array, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False) -> Array:
    """A leaky ReLU with the mean of the slopes that training draws."""
    if training:
        raise NotImplementedError("rrelu with training=True is random. Pass training=self.training to it.")
    return leaky_relu(x, (lower + upper) / 2)


@lowers(aten.prelu.default, aten._prelu_kernel.default, layout="own")
def prelu(x: Any, weight: Array) -> Any:
    """$x$ for positive $x$, else $w x$, with one weight per channel (axis 1)."""
    array = x.array if isinstance(x, ChannelsLast) else x
    if weight.ndim > 1:
        weight = weight.reshape(-1)  # (1, C, 1, 1) -> (C,)
    if not isinstance(x, ChannelsLast) and array.ndim > 1:
        weight = weight.reshape((-1,) + (1,) * (array.ndim - 2))
    out = jnp.where(array > 0, array, weight * array)
    return ChannelsLast(out) if isinstance(x, ChannelsLast) else out


@lowers(aten.hardtanh.default, layout="elementwise")
def hardtanh(x: Array, min_val: float = -1, max_val: float = 1) -> Array:
    """`x` cut to `[min, max]`, with derivative zero at the ends."""
    low, high = jnp.asarray(min_val, x.dtype), jnp.asarray(max_val, x.dtype)
    return jnp.where(x <= low, low, jnp.where(x >= high, high, x))


@lowers(aten.relu6.default, layout="elementwise")
def relu6(x: Array) -> Array:
    r"""$\min(\max(x, 0), 6)$."""
    return hardtanh(x, 0, 6)


@lowers(aten.hardsigmoid.default, layout="elementwise")
def hardsigmoid(x: Array) -> Array:
    r"""$\operatorname{relu6}(x + 3) / 6$."""
    return relu6(x + 3) / 6


@lowers(aten.hardswish.default, layout="elementwise")
def hardswish(x: Array) -> Array:
    r"""$x \operatorname{relu6}(x + 3) / 6$; zero below -3, `x` above 3."""
    return jnp.where(x <= -3, 0 * x, jnp.where(x < 3, x * (x + 3) / 6, x))


@lowers(aten.softplus.default, layout="elementwise")
def softplus(x: Array, beta: float = 1, threshold: float = 20) -> Array:
    r"""$\log(1 + e^{\beta x}) / \beta$, linear where $\beta x$ passes the threshold."""
    scaled = x * beta
    linear = scaled > threshold
    return jnp.where(linear, x, jnp.log1p(jnp.exp(jnp.where(linear, 0, scaled))) / beta)


@lowers(aten.log_sigmoid.default, aten.log_sigmoid_forward.default, layout="elementwise")
def log_sigmoid(x: Array) -> Array:
    r"""$\log \sigma(x)$."""
    return jax.nn.log_sigmoid(x)


@lowers(aten.softshrink.default, layout="elementwise")
def softshrink(x: Array, lambd: float = 0.5) -> Array:
    r"""$x$ moved towards zero by $\lambda$, zero in between."""
    return jnp.where(x > lambd, x - lambd, jnp.where(x < -lambd, x + lambd, 0 * x))  # NaN stays


@lowers(aten.hardshrink.default, layout="elementwise")
def hardshrink(x: Array, lambd: float = 0.5) -> Array:
    r"""$x$ outside $[-\lambda, \lambda]$, zero inside."""
    return jnp.where((x >= -lambd) & (x <= lambd), jnp.zeros((), x.dtype), x)


@lowers(aten.threshold.default, layout="elementwise")
def threshold(x: Array, threshold: float, value: float) -> Array:
    """$x$ above the threshold, else the value."""
    return jnp.where(x <= threshold, jnp.asarray(value, x.dtype), x)


@lowers(aten.glu.default)
def glu(x: Array, dim: int = -1) -> Array:
    """The first half times the sigmoid of the second."""
    a, b = jnp.split(x, 2, axis=dim)
    return a * jax.nn.sigmoid(b)


@lowers(aten.softmax.int, aten._softmax.default)
def softmax(x: Array, dim: int, dtype: Any = None) -> Array:
    """Softmax along one axis."""
    return jax.nn.softmax(_cast(x, dtype), axis=dim)


@lowers(aten.log_softmax.int, aten._log_softmax.default)
def log_softmax(x: Array, dim: int, dtype: Any = None) -> Array:
    """Logarithm of the softmax along one axis."""
    return jax.nn.log_softmax(_cast(x, dtype), axis=dim)


def _cast(x: Array, dtype: Any) -> Array:
    # the private overloads pass `half_to_float: bool` in the same place; the graph's dtype settles those
    return x if dtype is None or isinstance(dtype, bool) else x.astype(dtype)


@lowers(aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default, layout="own")
def dropout(x: Array, p: float, train: bool) -> Array:
    """`x`: models are traced in eval mode."""
    if train and p > 0:
        raise NotImplementedError("Dropout with training=True is random. Pass training=self.training to it.")
    return x
