"""Values print on one line."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jax_core.operators import LowRank
from jax_core.operators.short_repr import ShortRepr


def test_arrays_print_as_their_shapes():
    operator = LowRank(jnp.zeros((664, 3)), jnp.ones(3), jnp.asarray(0.5))
    assert repr(operator) == "LowRank(U=float32[664,3], s=float32[3], alpha=0.5)"


def test_values_print_under_tracing():
    shown = []
    jax.jit(lambda a: shown.append(repr(LowRank(a, a[0], a[0, 0]))))(jnp.zeros((4, 3)))
    assert "float32[4,3]" in shown[0]


def test_other_fields_print_as_they_are():
    @dataclass(frozen=True, repr=False)
    class Point(ShortRepr):
        name: str
        inner: LowRank

    inner = LowRank(jnp.zeros((2, 1)), jnp.ones(1), jnp.asarray(1.0))
    assert repr(Point("a", inner)) == f"Point(name='a', inner={inner!r})"
