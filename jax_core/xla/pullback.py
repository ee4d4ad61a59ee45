"""The value of a function and its vector-Jacobian product, as two compiled programs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jax_core.types import pytree
from jax_core.xla.compiled import as_jit_argument
from jax_core.xla.precision import full_precision

PullBack: TypeAlias = Callable[[Any], list[Array]]
"""From cotangents of the outputs to those of the inputs' floating leaves, in order."""


@pytree
@dataclass(frozen=True)
class _Residuals:
    """What a pull-back keeps.

    Attributes:
        computed: Arrays that are no argument of the program: those it would copy.
        places: For each array of the pull-back, where it lies among the arguments, or ``None``.
        structure: Of the pull-back.
    """

    computed: list[Array]
    places: tuple[int | None, ...] = field(metadata={"static": True})
    structure: Any = field(metadata={"static": True})

    def among(self, arguments: list[Any]) -> Any:
        """The pull-back of ``jax.vjp``."""
        rest = iter(self.computed)
        return jax.tree.unflatten(self.structure, [next(rest) if i is None else arguments[i] for i in self.places])


@full_precision
def with_pullback(function: Callable[[Any], Any], inputs: Any) -> tuple[Any, PullBack]:
    """``function(inputs)`` and its pull-back.

    Args:
        function: Of a tree of arrays. What it binds as a pytree (a ``Partial``, a registered dataclass) is an argument
            of the programs, so that another function of the same structure and shapes needs no others.
        inputs: Leaves that are not floating have no cotangent.
    """
    bound = as_jit_argument(function)
    outputs, residuals = _forward(bound, inputs)
    pull = residuals.among(jax.tree.leaves((bound, inputs)))
    return outputs, lambda cotangents: _backward(pull, cotangents)


@jax.jit
def _forward(function: Callable[[Any], Any], inputs: Any) -> tuple[Any, _Residuals]:
    leaves, structure = jax.tree.flatten(inputs)
    moving = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.inexact)]

    def of_moving(given: list[Array]) -> Any:
        whole = list(leaves)
        for i, leaf in zip(moving, given, strict=True):
            whole[i] = leaf
        return function(jax.tree.unflatten(structure, whole))

    outputs, pull = jax.vjp(of_moving, [leaves[i] for i in moving])
    arguments = {id(leaf): i for i, leaf in enumerate(jax.tree.leaves((function, inputs)))}
    kept, shape = jax.tree.flatten(pull)
    places = tuple(arguments.get(id(leaf)) for leaf in kept)
    computed = [leaf for leaf, place in zip(kept, places, strict=True) if place is None]
    return outputs, _Residuals(computed, places, shape)


@full_precision
def _backward(pull: Any, cotangents: Any) -> list[Array]:
    return _pulled(pull, cotangents)


@jax.jit
def _pulled(pull: Any, cotangents: Any) -> list[Array]:
    return pull(cotangents)[0]
