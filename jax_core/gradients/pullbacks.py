"""A batch of examples linearised once, for as many rows of each as are wanted.

Reverse mode keeps what it needs of the forward pass as arrays. Held apart from what is common to all examples (the
weights), they outlive the program that made them, and each further cotangent of an example costs its backward pass
alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
from jax.extend.core import Literal
from jaxtyping import Array, Float

from jax_core.gradients.factored import Layout
from jax_core.gradients.jacobians import pullback
from jax_core.types import ModelFn, Params, pytree


@pytree
@dataclass(frozen=True)
class Pullbacks:
    """For each example of a batch the map from a cotangent of its outputs to a gradient.

    Attributes:
        own: Arrays of each example, with an axis of examples.
        common: Arrays that all examples share.
        is_own: Of the map's arrays in their order, which are of the first kind.
        tree: The map.
    """

    own: list[Array]
    common: list[Array]
    is_own: tuple[bool, ...] = field(metadata={"static": True})
    tree: Any = field(metadata={"static": True})

    def __call__(self, cotangents: Float[Array, "B C"]) -> tuple[Float[Array, "B Q"], list[Float[Array, "B S O"]]]:
        """The row of each example: what its layout writes out, and the cotangents of the factored leaves. Traceable."""

        def one(own: list[Array], cotangent: Array) -> tuple[Array, list[Array]]:
            mine, shared = iter(own), iter(self.common)
            leaves = [next(mine) if is_own else next(shared) for is_own in self.is_own]
            return jax.tree.unflatten(self.tree, leaves)(cotangent)

        return jax.vmap(one)(self.own, cotangents)


def linearize(model_fn: ModelFn, params: Params, inputs: Any, layout: Layout) -> tuple[Pullbacks, list[Array]]:
    """The pullbacks of a batch, and the vectors ``(B, S, I)`` (rows of tables) of its factored leaves. Traceable."""
    trees: list[Any] = []

    def one(x: Any) -> tuple[list[Array], list[Array]]:
        _, pull, vectors = pullback(model_fn, params, x, layout)
        leaves, tree = jax.tree.flatten(pull)
        trees[:] = [tree]
        return leaves, vectors

    is_own = _reached(lambda x: one(x)[0], jax.tree.map(lambda leaf: leaf[0], inputs))

    def parted(x: Any) -> tuple[tuple[list[Array], list[Array]], list[Array]]:
        leaves, vectors = one(x)
        pairs = list(zip(leaves, is_own, strict=True))
        return ([leaf for leaf, mine in pairs if mine], vectors), [leaf for leaf, mine in pairs if not mine]

    (own, vectors), common = jax.vmap(parted, out_axes=(0, None))(inputs)
    return Pullbacks(own, common, is_own, trees[0]), vectors


def _reached(function: Any, example: Any) -> tuple[bool, ...]:
    """Which results of a function depend on its argument."""
    jaxpr = jax.make_jaxpr(function)(example).jaxpr
    reached = set(jaxpr.invars)
    for equation in jaxpr.eqns:
        if any(not isinstance(v, Literal) and v in reached for v in equation.invars):
            reached.update(equation.outvars)
    return tuple(not isinstance(v, Literal) and v in reached for v in jaxpr.outvars)
