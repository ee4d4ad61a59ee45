"""Dataclasses as pytrees: put together again as they were, and never taken for one another by compiled programs."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jax_core.likelihoods import Bernoulli, Gaussian
from jax_core.types import pytree


def times(number):
    @pytree
    @dataclass(frozen=True)
    class Times:
        part: Any = None

        def __call__(self, x):
            return number * x

    return Times


@pytree
@dataclass(frozen=True)
class Named:
    value: Any
    name: str = field(metadata={"static": True})
    found: list[int] = field(default_factory=list, metadata={"dropped": True})


def test_programs_of_classes_with_fields_alike_are_told_apart():
    """With ``jax.tree_util.register_dataclass`` and jaxlib 0.10.1 a fifth of a thousand were not."""
    call = jax.jit(lambda function, x: function(x))
    assert [float(call(times(number)(), 1.0)) for number in range(300)] == list(range(300))


def test_structures_of_likelihoods_differ():
    assert jax.tree.structure(Gaussian()) != jax.tree.structure(Bernoulli())


def test_a_value_is_put_together_from_its_children_and_its_structure():
    value = Named(jnp.arange(3.0), "a", [1])
    doubled = jax.tree.map(lambda leaf: 2 * leaf, value)
    assert (doubled.value.tolist(), doubled.name, doubled.found) == ([0.0, 2.0, 4.0], "a", [])
    assert jax.tree.structure(value) != jax.tree.structure(Named(value.value, "b"))
    assert [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(value)] == [".value"]


@pytest.mark.parametrize("transform", [jax.jit, lambda f: jax.vmap(f), lambda f: jax.grad(lambda v: f(v).sum())])
def test_transformations_go_through(transform):
    def function(value):
        return value.value**2

    assert transform(function)(Named(jnp.arange(3.0), "a")) is not None
