"""The ways a product can be given its data and its loss; what it is multiplied with, oracles judge elsewhere."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from jax_core import (
    create_ggn_mv,
    create_ggn_mv_without_data,
    create_mc_fisher_mv,
)
from jax_core.likelihoods import as_likelihood
from jax_core.matrix_free import to_dense
from tests.cases import cnn, dense_ggn, dense_jacobian, mlp

pytestmark = pytest.mark.in_turns


def test_monte_carlo_fisher_is_one_matrix():
    case = mlp()
    mv = create_mc_fisher_mv(case.model_fn, case.params, case.data("mse"), "mse", key=jax.random.key(0))
    first, again = (jax.flatten_util.ravel_pytree(mv(case.params))[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_factor_scales_to_the_total_number_of_samples(x64):
    case = mlp()
    data = case.data("mse")
    scaled = create_ggn_mv(case.model_fn, case.params, data, "mse", num_total_samples=90)
    plain = create_ggn_mv(case.model_fn, case.params, data, "mse")
    for a, b in zip(jax.tree.leaves(scaled(case.params)), jax.tree.leaves(plain(case.params)), strict=True):
        np.testing.assert_allclose(a, 10 * b, rtol=1e-12)


@pytest.mark.parametrize("samples", [1, 2, 63, 64, 65, 200])
def test_chunks_add_up_whatever_the_batch_size(x64, samples, monkeypatch):
    """The batch is walked in chunks with a ragged rest; the product may not depend on that."""
    monkeypatch.setattr("jax_core.xla.chunks._TEMPORARIES", 20_000)
    for case in (mlp(), cnn()):
        inputs = jax.random.normal(jax.random.key(3), (samples, *case.inputs.shape[1:]))
        data = {"input": inputs, "target": jnp.zeros((samples, case.classes))}
        mv = create_ggn_mv_without_data(case.model_fn, case.params, "mse", 1.0)
        whole = jax.jit(mv)(case.params, data)
        parts = [mv(case.params, jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], data)) for i in range(samples)]
        total = jax.tree.map(lambda *leaves: sum(leaves), *parts)
        for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(total), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_batched_models_and_own_loss_hessians_are_taken(x64):
    case = mlp()
    data = case.data("cross_entropy")
    plain = create_ggn_mv(case.model_fn, case.params, data, "cross_entropy")
    by_batch = create_ggn_mv(case.model_fn, case.params, data, "cross_entropy", vmap_over_data=False)

    def hessian_mv(vector, output, target):
        return as_likelihood("cross_entropy").hessian_mv(output[None], target[None], vector[None])[0]

    own = create_ggn_mv(case.model_fn, case.params, data, None, loss_hessian_mv=hessian_mv)
    for other in (by_batch, own):
        for a, b in zip(jax.tree.leaves(plain(case.params)), jax.tree.leaves(other(case.params)), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)


def test_empty_data_is_refused():
    case = mlp()
    data = {"input": jnp.zeros((0, 4)), "target": jnp.zeros((0,), int)}
    with pytest.raises(ValueError, match="no samples"):
        create_ggn_mv(case.model_fn, case.params, data, "cross_entropy")


def test_float32_product_is_within_rounding_of_float64():
    case = mlp()
    with jax.enable_x64(True):
        exact = mlp()
        expected = dense_ggn(exact, "cross_entropy")
    mv = create_ggn_mv(case.model_fn, case.params, case.data("cross_entropy"), "cross_entropy")
    got = to_dense(mv, case.params)
    assert got.dtype == jnp.float32
    jacobian = dense_jacobian(case)
    assert jnp.abs(got - got.T).max() < 1e-5 * jnp.abs(got).max()
    assert got.shape == expected.shape == (jacobian.shape[-1],) * 2
