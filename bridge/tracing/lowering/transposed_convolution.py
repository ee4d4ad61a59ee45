"""Transposed convolutions, on channels-last data."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import torch
from jax import lax
from jaxtyping import Array

from bridge.tracing.lowering.convolution import Ints, offsets, per_axis
from bridge.tracing.lowering.registry import ChannelsLast, channels_last, lowers, spread

aten = torch.ops.aten


@lowers(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input, layout="own")
def transposed_convolution(
    x: Any,
    weight: Array,
    bias: Any = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
) -> Any:
    """The transpose of a convolution over one to three axes.

    One matrix product gives what each element adds to its window; the windows are then summed in place.
    """
    spatial = weight.ndim - 2
    if not isinstance(x, ChannelsLast) and x.ndim == spatial + 1:
        out = transposed_convolution(x[None], weight, bias, stride, padding, output_padding, groups, dilation)
        return out.logical[0]
    steps, crops, extras, holes = (per_axis(v, spatial) for v in (stride, padding, output_padding, dilation))
    array = channels_last(x)
    kernel = weight.shape[2:]
    grouped = array.reshape(*array.shape[:-1], groups, -1)  # (N, *in, G, C/G)
    blocks = weight.reshape(groups, -1, weight.shape[1], math.prod(kernel))  # (G, C/G, O/G, K)
    terms = jnp.einsum("...gc,gcok->k...go", grouped, blocks).reshape(-1, *array.shape[:-1], groups * weight.shape[1])
    sizes = array.shape[1:-1]
    full = [
        (n - 1) * s + d * (k - 1) + 1 + e for n, s, d, k, e in zip(sizes, steps, holes, kernel, extras, strict=True)
    ]
    out = jnp.zeros((), array.dtype)
    for term, offset in zip(terms, offsets(kernel), strict=True):
        starts = [i * d for i, d in zip(offset, holes, strict=True)]
        ends = [m - a - (n - 1) * s - 1 for m, a, n, s in zip(full, starts, sizes, steps, strict=True)]
        widening = [(a, b, s - 1) for a, b, s in zip(starts, ends, steps, strict=True)]
        out = out + lax.pad(term, jnp.zeros((), term.dtype), [(0, 0, 0), *widening, (0, 0, 0)])
    out = out[(slice(None), *(slice(p, m - p) for p, m in zip(crops, full, strict=True)))]
    return ChannelsLast(out if bias is None else out + spread(bias, out.shape))
