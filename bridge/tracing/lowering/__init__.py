"""ATen operators in JAX, a file per family. Importing the package fills the table in `registry`."""

from bridge.tracing.lowering import (
    activation,
    attention,
    convolution,
    elementwise,
    indexing,
    interpolation,
    linear,
    max_pooling,
    normalization,
    pooling,
    recurrent,
    reduction,
    shape,
    transposed_convolution,
    unfolding,
)
from bridge.tracing.lowering.registry import LOWERINGS, ChannelsLast, Lowering, logical, lowers

__all__ = [
    "LOWERINGS",
    "ChannelsLast",
    "Lowering",
    "activation",
    "attention",
    "convolution",
    "elementwise",
    "indexing",
    "interpolation",
    "linear",
    "logical",
    "lowers",
    "max_pooling",
    "normalization",
    "pooling",
    "recurrent",
    "reduction",
    "shape",
    "transposed_convolution",
    "unfolding",
]
