"""Float32 products keep float32's digits, on every backend, unless the user chose otherwise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_core import LowRank, create_empirical_fisher_mv, create_ggn_mv, create_hessian_mv, nystrom
from jax_core.xla.precision import full_precision


def product(a, b):
    return a @ b


def products(function, *args):
    """How many matrix products a function makes, and how many of them in full precision."""
    text = str(jax.make_jaxpr(function)(*args))
    return text.count("dot_general["), text.count("precision=(Precision.HIGHEST, Precision.HIGHEST)")


@pytest.fixture
def accelerator(monkeypatch):
    """JAX as on a machine with a GPU, as far as tracing goes."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


def test_products_and_their_derivatives_are_full_on_an_accelerator(accelerator):
    x = jnp.ones((3, 3))
    assert products(product, x, x) == (1, 0)
    assert products(full_precision(product), x, x) == (1, 1)
    loss = full_precision(lambda x: product(x, x).sum())
    assert products(jax.grad(loss), x) == (3, 3)


def test_a_chosen_precision_is_left_alone(accelerator):
    x = jnp.ones((3, 3))
    with jax.default_matmul_precision("tensorfloat32"):
        assert products(full_precision(product), x, x) == (1, 0)


def test_nothing_is_changed_on_the_cpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    x = jnp.ones((3, 3))
    assert products(full_precision(product), x, x) == (1, 0)


def test_operators_ask_for_full_products(accelerator):
    operator = LowRank(jnp.eye(4, 2), jnp.ones(2), jnp.zeros(()))
    assert products(operator.mv, jnp.ones(4)) == (2, 2)
    assert products(operator.quadratic, jnp.ones((2, 4))) == (3, 3)


def test_curvature_products_are_full(accelerator):
    data = {"input": jnp.ones((2, 3)), "target": jnp.ones((2, 4))}
    for create in (create_ggn_mv, create_hessian_mv, create_empirical_fisher_mv):
        mv = create(lambda x, w: x @ w, jnp.ones((3, 4)), data, "mse")
        dots, full = products(mv, jnp.ones((3, 4)))
        assert dots == full > 0


def test_a_low_rank_is_orthonormal_to_float32():
    root = jnp.asarray(np.random.default_rng(0).normal(size=(200, 40)), jnp.float32)
    found = nystrom(lambda block: (block @ root) @ root.T, 200, rank=20, key=jax.random.key(0))
    gram = np.asarray(found.U, np.float64).T @ np.asarray(found.U, np.float64)
    assert np.abs(gram - np.eye(20)).max() < 1e-5
