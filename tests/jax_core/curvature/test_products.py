"""Curvature products against dense references and curvlinops."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from curvlinops import GGNLinearOperator, HessianLinearOperator
from torch import nn

from jax_core import (
    create_empirical_fisher_mv,
    create_ggn_mv,
    create_ggn_mv_without_data,
    create_hessian_mv,
    create_mc_fisher_mv,
)
from jax_core.likelihoods import as_likelihood
from jax_core.matrix_free import to_dense
from tests.cases import CASES, LOSSES, cnn, dense_ggn, dense_jacobian, mlp, sample_loss


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("case", CASES)
def test_ggn_equals_the_dense_one(x64, case, loss):
    case = case()
    mv = create_ggn_mv(case.model_fn, case.params, case.data(loss), loss)
    np.testing.assert_allclose(to_dense(mv, case.params), dense_ggn(case, loss), atol=1e-11)


@pytest.mark.parametrize("loss", LOSSES)
def test_hessian_equals_the_dense_one(x64, loss):
    case = mlp()
    flat, back = jax.flatten_util.ravel_pytree(case.params)

    def total(p):
        outputs = jax.vmap(lambda x: case.model_fn(x, back(p)))(case.inputs)
        return jax.vmap(sample_loss(loss))(outputs, case.targets(loss)).sum()

    mv = create_hessian_mv(case.model_fn, case.params, case.data(loss), loss)
    np.testing.assert_allclose(to_dense(mv, case.params), jax.hessian(total)(flat), atol=1e-10)


@pytest.mark.parametrize("loss", LOSSES)
def test_empirical_fisher_is_the_sum_of_gradient_outer_products(x64, loss):
    case = mlp()
    flat, back = jax.flatten_util.ravel_pytree(case.params)

    def one(p, x, y):
        return sample_loss(loss)(case.model_fn(x, back(p)), y)

    gradients = jax.vmap(jax.grad(one), (None, 0, 0))(flat, case.inputs, case.targets(loss))
    mv = create_empirical_fisher_mv(case.model_fn, case.params, case.data(loss), loss)
    np.testing.assert_allclose(to_dense(mv, case.params), gradients.T @ gradients, atol=1e-11)


@pytest.mark.parametrize("loss", LOSSES)
def test_monte_carlo_fisher_tends_to_the_ggn(x64, loss):
    case = mlp()
    mv = create_mc_fisher_mv(
        case.model_fn, case.params, case.data(loss), loss, key=jax.random.key(0), num_samples=20_000
    )
    expected = dense_ggn(case, loss)
    error = jnp.linalg.norm(to_dense(mv, case.params, block_size=1) - expected) / jnp.linalg.norm(expected)
    assert error < 0.05


def test_monte_carlo_fisher_is_one_matrix():
    case = mlp()
    mv = create_mc_fisher_mv(case.model_fn, case.params, case.data("mse"), "mse", key=jax.random.key(0))
    first, again = (jax.flatten_util.ravel_pytree(mv(case.params))[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize(("loss", "peer"), [("cross_entropy", nn.CrossEntropyLoss), ("mse", nn.MSELoss)])
@pytest.mark.parametrize("operator", [GGNLinearOperator, HessianLinearOperator])
def test_products_equal_curvlinops(x64, loss, peer, operator):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x = torch.randn(8, 4, dtype=torch.float64)
    y = torch.randint(3, (8,)) if loss == "cross_entropy" else torch.randn(8, 3, dtype=torch.float64)
    theirs = operator(model, peer(reduction="sum"), list(model.parameters()), [(x, y)], check_deterministic=False)
    scale = 1.0 if loss == "cross_entropy" else 2.0  # torch's MSELoss has no factor of one half
    params = {name: jnp.asarray(p.detach().numpy()) for name, p in model.named_parameters()}

    def model_fn(input, params):
        hidden = jnp.tanh(params["0.weight"] @ input + params["0.bias"])
        return params["2.weight"] @ hidden + params["2.bias"]

    data = {"input": jnp.asarray(x.numpy()), "target": jnp.asarray(y.numpy())}
    create = create_ggn_mv if operator is GGNLinearOperator else create_hessian_mv
    mv = create(model_fn, params, data, loss)
    generator = torch.Generator().manual_seed(1)
    vector = {n: torch.randn(p.shape, generator=generator, dtype=torch.float64) for n, p in model.named_parameters()}
    ours = mv({name: jnp.asarray(v.numpy()) for name, v in vector.items()})
    expected = theirs @ list(vector.values())
    for got, want in zip((ours[name] for name in vector), expected, strict=True):
        np.testing.assert_allclose(scale * got, want.detach().numpy(), rtol=1e-9, atol=1e-11)


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
    monkeypatch.setattr("jax_core.footprint._TEMPORARIES", 20_000)
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
