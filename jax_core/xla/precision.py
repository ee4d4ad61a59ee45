"""Products of float32 numbers in float32, also where accelerators would round them to fewer digits."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import jax

from jax_core.xla.backend import platform

P = ParamSpec("P")
T = TypeVar("T")


def full_precision(function: Callable[P, T]) -> Callable[P, T]:
    """The function with its matrix products and convolutions in float32, unless a precision has been chosen.

    JAX's default on a GPU is TensorFloat-32, whose products are off by 3e-4, where a reduction to low rank wants
    vectors orthogonal to 1e-6. Torch computes matrix products in float32. ``jax.default_matmul_precision``, as a
    context or as configuration, chooses otherwise and is left alone.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        chosen = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
        # on the CPU float32 is the default: nothing is changed there, so no program is compiled twice
        if chosen is not None or platform() == "cpu":
            return function(*args, **kwargs)
        with jax.default_matmul_precision("float32"):
            return function(*args, **kwargs)

    return call
