"""Functions of torch with torch's derivatives where JAX has others: at zero, at kinks, at ties."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import torch
from jaxtyping import Array


def with_slope(function: Callable[[Array], Array], slope: Callable[[Array, Array], Array]) -> Callable[[Array], Array]:
    """`function` of one array, with the derivative `slope(x, function(x))`; as it is for integers."""

    @jax.custom_jvp
    def value(x: Array) -> Array:
        return function(x)

    @value.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        (x,), (t,) = primals, tangents
        y = value(x)
        return y, slope(x, y) * t

    return lambda x: value(x) if jnp.issubdtype(x.dtype, jnp.floating) else function(x)


def with_slopes(
    function: Callable[[Array, Array], Array],
    first: Callable[[Array, Array, Array], Array],
    second: Callable[[Array, Array, Array], Array],
) -> Callable[[Any, Any], Array]:
    """`function` of two arrays, with derivatives given `(x, y, function(x, y))`; as it is without two floats."""

    @jax.custom_jvp
    def value(x: Array, y: Array) -> Array:
        return function(x, y)

    @value.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        (x, y), (s, t) = primals, tangents
        out = value(x, y)
        return out, first(x, y, out) * s + second(x, y, out) * t

    def call(x: Any, y: Any) -> Array:
        kind = jnp.result_type(x, y)
        if not jnp.issubdtype(kind, jnp.floating):
            return function(x, y)
        return value(*jnp.broadcast_arrays(jnp.asarray(x, kind), jnp.asarray(y, kind)))

    return call


def sign(x: Array) -> Array:
    """-1, 0 or 1; 0 for NaN, as in torch."""
    return jnp.where(x > 0, 1, jnp.where(x < 0, -1, 0)).astype(x.dtype)


# JAX has the derivative 1 at zero, and inherits it in whatever is made of this
absolute = with_slope(jnp.abs, lambda x, y: sign(x))
i0 = with_slope(jax.scipy.special.i0, lambda x, y: jax.scipy.special.i1(x))
entr = with_slope(jax.scipy.special.entr, lambda x, y: -jnp.log(x) - 1)
digamma = with_slope(
    lambda x: jnp.where(x == 0, jnp.copysign(jnp.inf, -x).astype(x.dtype), jax.scipy.special.digamma(x)),
    lambda x, y: jax.scipy.special.polygamma(1, x),
)
logit = with_slope(
    lambda x: jnp.log(x / (1 - x)),
    lambda x, y: jnp.where((x < 0) | (x > 1), jnp.nan, 1 / (x * (1 - x))).astype(x.dtype),
)

atan2 = with_slopes(
    jnp.arctan2,
    lambda x, y, out: jnp.where((x == 0) & (y == 0), 0, y / (x * x + y * y)),
    lambda x, y, out: jnp.where((x == 0) & (y == 0), 0, -x / (x * x + y * y)),
)
copysign = with_slopes(
    jnp.copysign, lambda x, y, out: jnp.where(x == 0, 0, out / x), lambda x, y, out: jnp.zeros_like(out)
)
hypot = with_slopes(jnp.hypot, lambda x, y, out: x / out, lambda x, y, out: y / out)
xlogy = with_slopes(
    lambda x, y: jnp.where(jnp.isnan(y), jnp.nan, jnp.where(x == 0, 0, x * jnp.log(y))).astype(x.dtype),
    lambda x, y, out: jnp.where((x == 0) & (y <= 0), 0, jnp.log(y)),
    lambda x, y, out: x / y,
)
xlog1py = with_slopes(
    lambda x, y: jnp.where(jnp.isnan(y), jnp.nan, jnp.where(x == 0, 0, x * jnp.log1p(y))).astype(x.dtype),
    lambda x, y, out: jnp.where((x == 0) & (y <= -1), 0, jnp.log1p(y)),
    lambda x, y, out: x / (y + 1),
)
power = with_slopes(
    jnp.power,
    lambda x, y, out: jnp.where(y == 0, 0, y * jnp.power(x, y - 1)),
    lambda x, y, out: jnp.where((x == 0) & (y >= 0), 0, out * jnp.log(x)),
)


@functools.cache
def clamp_slopes() -> tuple[float, float]:
    """Torch's derivative of `clamp` at an end that is a number, and at one that is a tensor: versions differ."""
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        total = x[0].clamp(min=0.0) + x[1:].clamp(min=torch.zeros(1, dtype=torch.float64)).sum()
        number, tensor = torch.autograd.grad(total, x)[0].tolist()
    return number, tensor
