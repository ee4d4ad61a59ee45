"""Kronecker structures against dense float64 references built layer by layer."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_core import FitOptions, LoaderPasses, Posterior, as_likelihood, fit_curvature, linearized_predictive
from jax_core.gradients import hessian_rows
from jax_core.gradients.weight_order import find_order, in_order
from jax_core.kronecker.layers import find_layers
from jax_core.operators import BlockDiagonal, BlockLowRank, Dense, Diagonal, Kronecker
from jax_core.xla.compiled import as_jit_argument
from tests.cases import attention, cnn, dense_ggn, dense_jacobian, mlp

pytestmark = pytest.mark.in_turns

STRUCTURES = ("kron", "ekfac", "kron_lowrank")


def fit(case, structure, loss="cross_entropy", cut=4, key=0, **options):
    target = case.targets(loss)
    batches = [(case.inputs[i : i + cut], target[i : i + cut]) for i in range(0, len(case.inputs), cut)]
    how = FitOptions(structure=structure, progress=False, **options)
    passes = LoaderPasses(batches)
    passes.preload()  # so that the plan knows how many rows there are
    what = (case.model_fn, case.params, as_likelihood(loss), passes, how)
    return fit_curvature(*what, key=jax.random.key(key))


def dense(operator):
    return jax.vmap(operator.mv)(jnp.eye(operator.size))


def slices(case):
    ends = np.cumsum([0, *(leaf.size for leaf in jax.tree.leaves(case.params))])
    return list(itertools.starmap(slice, itertools.pairwise(ends)))


@pytest.mark.parametrize("make", [mlp, cnn, attention])
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_ekfac_has_the_exact_diagonal_in_its_coordinates(x64, make, loss):
    case = make()
    found = fit(case, "ekfac", loss).curvature
    exact = dense_ggn(case, loss)
    turned = found.rotate(found.rotate(exact).T)
    np.testing.assert_allclose(found.spectrum, jnp.diag(turned), atol=1e-10)


@pytest.mark.parametrize("make", [mlp, cnn, attention])
def test_low_rank_beside_the_diagonal_keeps_the_trace(x64, make):
    case = make()
    found = fit(case, "kron_lowrank", rank=3).curvature
    exact = dense_ggn(case, "cross_entropy")
    np.testing.assert_allclose(found.trace(), jnp.trace(exact), rtol=1e-8)
    values, vectors = jnp.linalg.eigh(exact)
    leading = (vectors[:, -3:] * values[-3:]) @ vectors[:, -3:].T
    turned = jax.vmap(found.blocks.rotate_back, 1, 1)(found.U)
    np.testing.assert_allclose((turned * found.s) @ turned.T, leading, atol=1e-8)


@pytest.mark.parametrize("make", [mlp, cnn, attention])
def test_of_full_rank_it_is_the_ggn(x64, make):
    case = make()
    size = sum(leaf.size for leaf in jax.tree.leaves(case.params))
    found = fit(case, "kron_lowrank", rank=size).curvature
    np.testing.assert_allclose(dense(found), dense_ggn(case, "cross_entropy"), atol=1e-8)


def test_a_sketch_and_all_rows_agree_where_the_rank_is_the_matrix_s(x64, monkeypatch):
    case = mlp()
    exact = dense_ggn(case, "cross_entropy")
    monkeypatch.setattr("jax_core.lowrank.plan._GRAM_ROWS", 0)
    result = fit(case, "kron_lowrank", rank=40)
    assert result.plan.method == "nystrom"
    np.testing.assert_allclose(dense(result.curvature), exact, atol=1e-2 * jnp.abs(exact).max())  # its tolerance


def test_a_dense_layer_of_one_sample_is_a_kronecker_product(x64):
    """With one sample the factors' product is the block itself."""
    case = mlp()
    case = dataclasses.replace(case, inputs=case.inputs[:1])
    exact, found = dense_ggn(case, "cross_entropy"), fit(case, "kron").curvature
    for part, s in zip(found.parts, slices(case), strict=True):
        assert isinstance(part, Kronecker | Dense)
        np.testing.assert_allclose(dense(part), exact[s, s], atol=1e-10)


def covariance_of(curvature, prior):
    """Dense, under a prior precision."""
    return jnp.linalg.inv(dense(curvature) + jnp.diag(jnp.broadcast_to(prior, curvature.size)))


def predicting_as_dense(case, curvature, prior=2.0):
    """The posterior under a prior precision, whose covariances of outputs are those of the dense operator."""
    rows = dense_jacobian(case)
    posterior = Posterior.create(case.params, curvature, jnp.asarray(prior))
    found = linearized_predictive(case.model_fn, posterior)(case.inputs)
    wanted = rows @ covariance_of(curvature, prior) @ jnp.swapaxes(rows, 1, 2)
    np.testing.assert_allclose(found.covariance, wanted, atol=1e-9)
    return posterior


def with_a_prior_as_dense(case, curvature, prior):
    """Covariances of outputs and weights under a precision for each weight are those of the dense operator."""
    posterior = predicting_as_dense(case, curvature, prior)
    root = jax.vmap(posterior.scale_flat, 1, 1)(jnp.eye(curvature.size))
    np.testing.assert_allclose(root @ root.T, covariance_of(curvature, prior), atol=1e-9)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("make", [mlp, cnn, attention])
def test_predictive_is_that_of_the_dense_operator(x64, structure, make):
    case = make()
    curvature = fit(case, structure, rank=3).curvature
    posterior = predicting_as_dense(case, curvature)
    expected = np.linalg.slogdet(np.asarray(dense(curvature) / 2 + jnp.eye(curvature.size)))[1]
    np.testing.assert_allclose(posterior.log_det_ratio(), expected, rtol=1e-9)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_prior_per_layer_is_exact(x64, structure):
    case = cnn()
    curvature = fit(case, structure, rank=3).curvature
    layers = jnp.arange(1.0, 1 + len(jax.tree.leaves(case.params)))
    prior = jnp.concatenate([jnp.full(s.stop - s.start, v) for s, v in zip(slices(case), layers, strict=True)])
    with_a_prior_as_dense(case, curvature, prior)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_neither_batches_nor_float32_show(structure):
    case = cnn()
    whole, parts = fit(case, structure, cut=7, rank=3).curvature, fit(case, structure, cut=2, rank=3).curvature
    np.testing.assert_allclose(dense(whole), dense(parts), atol=2e-4 * float(jnp.abs(dense(whole)).max()))


def test_parameters_are_sorted_by_what_they_do():
    def model(x, p):
        hidden = jnp.tanh(x @ p["w"] + p["b"])
        scaled = (hidden - hidden.mean()) * p["gain"]
        shared = (scaled @ p["shared"] + p["twice"]) @ p["shared"] + p["twice"]
        once = (shared @ p["again"] + p["once"]) @ p["again"]
        return once @ p["tied"] @ p["tied"].T + p["out"].sum()

    three, square = jnp.ones(3), jnp.ones((3, 3))
    params = {"w": jnp.ones((4, 3)), **dict.fromkeys(("b", "gain", "out", "twice", "once"), three)}
    params |= dict.fromkeys(("tied", "shared", "again"), square)
    names = sorted(params)
    stored = find_layers(as_jit_argument(model), params, jnp.ones(4))
    assert stored.layout.factored == ()  # (in, out) is not the order of gradients
    order = find_order(model, params, jnp.ones(4))
    found = find_layers(as_jit_argument(in_order(model, order)), order.of(params), jnp.ones(4))
    assert [names[slot.leaf] for slot in found.layout.factored] == ["again", "shared", "w"]
    assert {(names[bias], names[matrix]) for bias, matrix in found.biases} == {("b", "w"), ("twice", "shared")}


def test_a_parameter_that_meets_no_product_falls_to_a_block_and_is_named():
    case = mlp()

    def model(x, p):
        return case.model_fn(x, p["net"]) * p["gain"]

    params = {"gain": jnp.ones(3), "net": case.params}
    result = fit(dataclasses.replace(case, model_fn=model, params=params), "kron")
    assert isinstance(result.curvature, BlockDiagonal)
    assert isinstance(result.curvature.parts[0], Dense)
    assert "2 Kronecker blocks, 3 dense (" in result.plan.reason


def test_large_blocks_of_no_product_are_diagonal_and_named(monkeypatch):
    monkeypatch.setattr("jax_core.kronecker.layers._MOST_DENSE", 2)

    def model(x, p):  # a function of its own, since layers are remembered by it
        return mlp().model_fn(x, p)

    result = fit(dataclasses.replace(mlp(), model_fn=model), "kron_lowrank", rank=2)
    assert isinstance(result.curvature, BlockLowRank)
    assert any(isinstance(part, Diagonal) for part in result.curvature.blocks.parts)
    assert "a diagonal for b1, b2" in result.plan.reason


def test_inputs_are_counted_once_a_sample_whatever_its_rows(x64):
    """Confident samples give no rows, and their inputs count all the same."""
    case = mlp()
    sure = jax.tree.map(lambda leaf: leaf, case.params)
    sure["b2"] = sure["b2"].at[0].add(800.0)  # the softmax saturates: every Hessian is zero
    with pytest.warns(UserWarning, match="curvature of the data is zero"):
        found = fit(dataclasses.replace(case, params=sure), "kron").curvature
    index = sorted(case.params).index("w1")
    right = found.parts[index].right if found.parts[index].right.shape == (4, 4) else found.parts[index].left
    gram = case.inputs.T @ case.inputs
    turned = right.T @ gram @ right
    np.testing.assert_allclose(turned, jnp.diag(jnp.diag(turned)), atol=1e-9)


@pytest.mark.parametrize("kfac_approx", ["expand", "reduce"])
@pytest.mark.parametrize(("make", "loss"), [(mlp, "mse"), (attention, "cross_entropy")])
def test_factors_of_drawn_targets_are_unbiased_at_one_row_a_sample(x64, monkeypatch, make, loss, kfac_approx):
    rows = []
    found = hessian_rows.loss_rows

    def counted(*args):
        rows.append(found(*args))
        return rows[-1]

    case, keys = make(), range(60)
    exact = dense(fit(case, "kron", loss, kfac_approx=kfac_approx).curvature)
    monkeypatch.setattr(hessian_rows, "loss_rows", counted)
    how = {"curvature": "mc_fisher", "kfac_approx": kfac_approx}
    drawn = np.stack([dense(fit(case, "kron", loss, cut=9, key=key, **how).curvature) for key in keys])
    assert len(rows) == len(keys) and all(len(sample) <= len(case.inputs) for sample, _ in rows)
    error = drawn.std(0, ddof=1) / len(keys) ** 0.5
    assert error.max() > 1e-3
    assert (np.abs(drawn.mean(0) - exact) <= 5 * error + 1e-9).all()
