"""ATen operators in JAX, a file per family. Importing the package fills the table in `registry`."""

from bridge.tracing.lowering import (
    activation,
    convolution,
    elementwise,
    linear,
    normalization,
    pooling,
    reduction,
    shape,
)
from bridge.tracing.lowering.registry import LOWERINGS, ChannelsLast, Lowering, logical, lowers

__all__ = [
    "LOWERINGS",
    "ChannelsLast",
    "Lowering",
    "activation",
    "convolution",
    "elementwise",
    "linear",
    "logical",
    "lowers",
    "normalization",
    "pooling",
    "reduction",
    "shape",
]
