"""Products are those of their definition, however they are spelled; so are their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_core.xla.products import times_rows

OTHERS = jax.random.normal(jax.random.key(0), (4096, 256))


@pytest.mark.parametrize("count", [0, 1, 2, 32, 33, 64, 65])
def test_rows_meet_many_others(count):
    rows = jax.random.normal(jax.random.key(1), (count, 256))
    np.testing.assert_allclose(jax.jit(times_rows)(rows, OTHERS), np.asarray(rows) @ np.asarray(OTHERS).T, atol=2e-4)


@pytest.mark.parametrize("count", [3, 40])
def test_derivatives_of_the_product_are_its_own(count):
    rows = jax.random.normal(jax.random.key(1), (count, 256))
    cotangent = jax.random.normal(jax.random.key(2), (count, 4096))
    found = jax.jit(jax.grad(lambda x: (times_rows(x, OTHERS) * cotangent).sum()))(rows)
    np.testing.assert_allclose(found, np.asarray(cotangent) @ np.asarray(OTHERS), atol=2e-3)
    stacked = jax.vmap(times_rows, (0, None))(jnp.stack([rows, 2 * rows]), OTHERS)
    np.testing.assert_allclose(stacked[1], 2 * stacked[0], atol=1e-3)
