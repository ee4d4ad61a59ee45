"""Elementwise operators: arithmetic, comparisons, casts and the plain functions of one tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import torch
from jax import lax
from jaxtyping import Array

from bridge.tracing.lowering import slopes
from bridge.tracing.lowering.registry import lowers

aten = torch.ops.aten

_UNARY: dict[str, Callable[[Array], Array]] = {
    "abs": slopes.absolute,
    "acos": jnp.arccos,
    "acosh": jnp.arccosh,
    "asin": jnp.arcsin,
    "asinh": jnp.arcsinh,
    "atan": jnp.arctan,
    "atanh": jnp.arctanh,
    "bitwise_not": jnp.bitwise_not,
    "ceil": jnp.ceil,
    "cos": jnp.cos,
    "cosh": jnp.cosh,
    "digamma": slopes.digamma,
    "erf": jax.scipy.special.erf,
    "erfc": jax.scipy.special.erfc,
    "special_entr": slopes.entr,
    "erfinv": jax.scipy.special.erfinv,
    "exp": jnp.exp,
    "exp2": jnp.exp2,
    "expm1": jnp.expm1,
    "floor": jnp.floor,
    "i0": slopes.i0,
    "isfinite": jnp.isfinite,
    "isinf": jnp.isinf,
    "isnan": jnp.isnan,
    "lgamma": jax.scipy.special.gammaln,
    "log": jnp.log,
    "log10": jnp.log10,
    "log1p": jnp.log1p,
    "log2": jnp.log2,
    "logical_not": jnp.logical_not,
    "neg": jnp.negative,
    "reciprocal": jnp.reciprocal,
    "round": jnp.round,
    "rsqrt": lax.rsqrt,
    "sgn": slopes.sign,
    "sigmoid": jax.nn.sigmoid,
    "sign": slopes.sign,
    "sin": jnp.sin,
    "sinc": jnp.sinc,
    "sinh": jnp.sinh,
    "sqrt": jnp.sqrt,
    "square": jnp.square,
    "tan": jnp.tan,
    "tanh": jnp.tanh,
    "trunc": jnp.trunc,
}

_BINARY: dict[str, Callable[[Any, Any], Array]] = {
    "atan2": slopes.atan2,
    "bitwise_and": jnp.bitwise_and,
    "bitwise_or": jnp.bitwise_or,
    "bitwise_xor": jnp.bitwise_xor,
    "copysign": slopes.copysign,
    "eq": jnp.equal,
    "floor_divide": jnp.floor_divide,
    "fmod": jnp.fmod,
    "ge": jnp.greater_equal,
    "gt": jnp.greater,
    "hypot": slopes.hypot,
    "le": jnp.less_equal,
    "logaddexp": jnp.logaddexp,
    "logical_and": jnp.logical_and,
    "logical_or": jnp.logical_or,
    "logical_xor": jnp.logical_xor,
    "lt": jnp.less,
    "maximum": jnp.maximum,
    "minimum": jnp.minimum,
    "mul": jnp.multiply,
    "ne": jnp.not_equal,
    "remainder": jnp.remainder,
    "special_xlog1py": slopes.xlog1py,
    "true_divide": jnp.divide,
    "xlogy": slopes.xlogy,
}


for _name, _function in _UNARY.items():
    lowers(getattr(aten, _name).default, layout="elementwise")(_function)

for _name, _function in _BINARY.items():
    _packet = getattr(aten, _name)
    _overloads = [getattr(_packet, o) for o in ("default", "Tensor", "Scalar") if o in _packet.overloads()]
    lowers(*_overloads, layout="elementwise")(_function)


@lowers(aten.add.Tensor, aten.add.Scalar, layout="elementwise")
def add(x: Array, other: Any, alpha: float = 1) -> Array:
    r"""$x + \alpha\,y$."""
    return x + other if alpha == 1 else x + alpha * other


@lowers(aten.sub.Tensor, aten.sub.Scalar, layout="elementwise")
def sub(x: Array, other: Any, alpha: float = 1) -> Array:
    r"""$x - \alpha\,y$."""
    return x - other if alpha == 1 else x - alpha * other


@lowers(aten.rsub.Tensor, aten.rsub.Scalar, layout="elementwise")
def rsub(x: Array, other: Any, alpha: float = 1) -> Array:
    r"""$y - \alpha\,x$."""
    return other - x if alpha == 1 else other - alpha * x


@lowers(aten.div.Tensor, aten.div.Scalar, aten.div.Tensor_mode, aten.div.Scalar_mode, layout="elementwise")
def div(x: Array, other: Any, rounding_mode: str | None = None) -> Array:
    """$x / y$, rounded down (`floor`), towards zero (`trunc`) or not at all."""
    if rounding_mode is None:
        return jnp.true_divide(x, other)
    if rounding_mode == "floor":
        return jnp.floor_divide(x, other)
    if jnp.issubdtype(jnp.result_type(x, other), jnp.integer):
        return lax.div(*jnp.broadcast_arrays(x, jnp.asarray(other, x.dtype)))
    return jnp.trunc(jnp.true_divide(x, other))


@lowers(aten.pow.Tensor_Scalar, aten.pow.Tensor_Tensor, aten.pow.Scalar, layout="elementwise")
def power(x: Any, exponent: Any) -> Array:
    """$x^y$; a whole exponent becomes repeated multiplication, which is faster and has all derivatives."""
    if isinstance(exponent, (bool, int, float)):
        if isinstance(exponent, float) and not jnp.issubdtype(x.dtype, jnp.inexact):
            x = x.astype(jnp.result_type(jnp.float32, float))  # torch computes in floats, which do not overflow
        if exponent in _ROOTS:
            return _ROOTS[exponent](x)
        return jnp.power(x, int(exponent) if float(exponent).is_integer() else exponent)
    return slopes.power(x, exponent)


# not what `power` gives for minus infinity
_ROOTS: dict[float, Callable[[Array], Array]] = {0.5: jnp.sqrt, -0.5: lax.rsqrt}


@lowers(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar, layout="elementwise")
def where(condition: Array, x: Any, other: Any) -> Array:
    """The elements of `x` where `condition` holds, else those of `other`."""
    return jnp.where(condition, x, other)


@lowers(aten.masked_fill.Scalar, aten.masked_fill.Tensor, layout="elementwise")
def masked_fill(x: Array, mask: Array, value: Any) -> Array:
    """`x` with `value` where `mask` holds."""
    return jnp.where(mask, jnp.asarray(value, x.dtype), x)


@lowers(aten.clamp.default, aten.clamp.Tensor, layout="elementwise")
def clamp(x: Array, min: Any = None, max: Any = None) -> Array:
    """`x` cut to `[min, max]`, with torch's derivative at an end."""
    if min is not None:
        x = _cut(x, min, jnp.less, jnp.less_equal, jnp.maximum)
    if max is not None:
        x = _cut(x, max, jnp.greater, jnp.greater_equal, jnp.minimum)
    return x


def _cut(x: Array, end: Any, past: Any, past_or_at: Any, extreme: Any) -> Array:
    number, tensor = slopes.clamp_slopes()
    if not isinstance(end, jax.Array):
        beyond = past(x, end) if number else past_or_at(x, end)
        return jnp.where(beyond, jnp.asarray(end, x.dtype), x)
    if tensor == 0.5:
        return extreme(x, end)  # equals share the derivative
    beyond = past(x, end) | jnp.isnan(end)
    return jnp.where(beyond, jnp.asarray(end, x.dtype), x)


@lowers(aten.clamp_min.default, aten.clamp_min.Tensor, layout="elementwise")
def clamp_min(x: Array, min: Any) -> Array:
    """`x`, but at least `min`."""
    return clamp(x, min=min)


@lowers(aten.clamp_max.default, aten.clamp_max.Tensor, layout="elementwise")
def clamp_max(x: Array, max: Any) -> Array:
    """`x`, but at most `max`."""
    return clamp(x, max=max)


@lowers(aten.lerp.Scalar, aten.lerp.Tensor, layout="elementwise")
def lerp(x: Array, end: Array, weight: Any) -> Array:
    """$x + w (y - x)$, from the nearer end, as torch rounds it."""
    return jnp.where(jnp.abs(weight) < 0.5, x + weight * (end - x), end - (end - x) * (1 - weight))


@lowers(aten.addcmul.default, layout="elementwise")
def addcmul(x: Array, a: Array, b: Array, value: float = 1) -> Array:
    r"""$x + v\,a b$."""
    return x + value * a * b


@lowers(aten.addcdiv.default, layout="elementwise")
def addcdiv(x: Array, a: Array, b: Array, value: float = 1) -> Array:
    r"""$x + v\,a / b$."""
    return x + value * (a / b)


@lowers(aten.logit.default, layout="elementwise")
def logit(x: Array, eps: float | None = None) -> Array:
    r"""$\log(x / (1 - x))$, of `x` cut to `[eps, 1 - eps]`."""
    if eps is None:
        return slopes.logit(x)
    inside = (x >= eps) & (x <= 1 - eps)
    out = slopes.logit(jnp.where(x < eps, eps, jnp.where(x > 1 - eps, 1 - eps, x)).astype(x.dtype))
    return jnp.where(inside | jnp.isnan(x), out, lax.stop_gradient(out))


@lowers(aten.__lshift__.Scalar, aten.__lshift__.Tensor, aten.bitwise_left_shift.Tensor, layout="elementwise")
def left_shift(x: Array, other: Any) -> Array:
    r"""$x\,2^y$, in integers."""
    return jnp.left_shift(x, jnp.asarray(other, x.dtype))


@lowers(aten.__rshift__.Scalar, aten.__rshift__.Tensor, aten.bitwise_right_shift.Tensor, layout="elementwise")
def right_shift(x: Array, other: Any) -> Array:
    r"""$\lfloor x / 2^y \rfloor$, in integers."""
    return jnp.right_shift(x, jnp.asarray(other, x.dtype))


@lowers(aten.round.decimals, layout="elementwise")
def round_decimals(x: Array, *, decimals: int) -> Array:
    """`x` rounded to so many decimals, or to tens and hundreds."""
    scale = 10.0 ** abs(decimals)
    return jnp.round(x * scale) / scale if decimals > 0 else jnp.round(x / scale) * scale


@lowers(aten.nan_to_num.default, layout="elementwise")
def nan_to_num(x: Array, nan: float | None = None, posinf: float | None = None, neginf: float | None = None) -> Array:
    """`x` with NaN and the infinities replaced."""
    return jnp.nan_to_num(x, nan=nan or 0.0, posinf=posinf, neginf=neginf)


@lowers(aten._to_copy.default, layout="elementwise")
def to_copy(x: Array, dtype: Any = None) -> Array:
    """A cast; devices and memory formats mean nothing here."""
    return x if dtype is None else cast(x, dtype)


def cast(x: Array, dtype: Any) -> Array:
    """`x` in another dtype; a float out of an integer's range gives what processors make of it, as torch does.

    That is the smallest 32- or 64-bit integer, and its last bits for narrower ones; XLA would give the nearest one.
    """
    if not (jnp.issubdtype(x.dtype, jnp.floating) and jnp.issubdtype(dtype, jnp.integer)):
        return x.astype(dtype)
    wide = jnp.int64 if jnp.dtype(dtype).itemsize == 8 else jnp.int32
    lowest = jnp.iinfo(wide).min
    inside = (x >= lowest) & (x < -float(lowest))  # no NaN
    return jnp.where(inside, jnp.where(inside, x, 0).astype(wide), lowest).astype(dtype)


@lowers(
    aten.alias.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.lift_fresh_copy.default,
    layout="own",
)
def same(x: Any) -> Any:
    """`x`, since arrays are values: there is nothing to copy or to alias."""
    return x


@lowers(aten.detach.default, layout="elementwise")
def detach(x: Array) -> Array:
    """`x` with its derivative cut."""
    return lax.stop_gradient(x)


@lowers(aten.fill.Scalar, aten.fill.Tensor)
def fill(x: Array, value: Any) -> Array:
    """An array shaped like `x`, full of `value`."""
    return jnp.broadcast_to(jnp.asarray(value, x.dtype), x.shape)
