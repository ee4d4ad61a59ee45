"""Parameters that are no matrix of products alone have an exact block for each of their rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_core import Posterior, linearized_predictive
from jax_core.data.batches import Batch
from jax_core.kronecker import layers
from jax_core.operators import BlockLowRank, Dense, Diagonal, Kronecker, RowBlocks, add
from jax_core.posterior import prior_vector
from jax_core.tuning import evidence_loss, layerwise
from jax_core.tuning.layerwise import covariances, layer_products
from tests.cases import Case, dense_ggn, flatten
from tests.jax_core.kronecker.test_fit import STRUCTURES, dense, fit, predicting_as_dense, slices, with_a_prior_as_dense

pytestmark = [pytest.mark.usefixtures("small_bounds", "x64"), pytest.mark.in_turns]


@pytest.fixture
def small_bounds(monkeypatch):
    """So that a small network has one parameter of each kind."""
    monkeypatch.setattr(layers, "_MOST_DENSE", 16)
    monkeypatch.setattr(layers, "_MOST_SIDE", 6)


def _network(input, params):
    maps = jax.lax.conv_general_dilated(
        input[None],
        params["kernel"],
        (1, 1),
        "VALID",
        dimension_numbers=("NCHW", "OIHW", "NCHW"),
        feature_group_count=4,
    )
    places = jnp.tanh(maps[0].reshape(8, -1).T + params["place"][0])  # (9, 8)
    return jnp.tanh(places.mean(0) @ params["wide"]) @ params["out"] + params["bias"]


SHAPES = {"bias": (3,), "kernel": (8, 1, 3, 3), "out": (5, 3), "place": (1, 9, 8), "wide": (8, 5)}
GROUPS = {  # which block each number of a parameter belongs to
    "kernel": np.arange(72) // 9,  # an output channel
    "place": np.arange(72) % 8,  # a feature, all its places
    "wide": np.arange(40) % 5,  # an output
}


def case(model=_network):
    keys = jax.random.split(jax.random.key(0), len(SHAPES) + 1)
    params = {name: jax.random.normal(key, shape) for key, (name, shape) in zip(keys[1:], SHAPES.items(), strict=True)}
    return Case("grouped", model, params, jax.random.normal(keys[0], (7, 4, 5, 5)), 3)


def parts_of(curvature):
    return dict(zip(SHAPES, curvature.parts, strict=True))


def test_parameters_are_sorted_and_said(x64):
    found = fit(case(), "kron")
    kinds = {name: type(part) for name, part in parts_of(found.curvature).items()}
    assert kinds == {"bias": Dense, "kernel": RowBlocks, "out": Kronecker, "place": RowBlocks, "wide": RowBlocks}
    expected = (
        "1 Kronecker block, 1 dense (of parameters that are no matrix of products alone), 3 of a dense block for each"
    )
    assert found.plan.reason == f"{expected} row."


@pytest.mark.parametrize("structure", ["kron", "ekfac"])
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_blocks_of_rows_are_those_of_the_ggn(structure, loss):
    one = case()
    exact, found = dense_ggn(one, loss), dense(fit(one, structure, loss).curvature)
    for (name, groups), s in zip(GROUPS.items(), (slices(one)[i] for i in (1, 3, 4)), strict=True):
        own = groups[:, None] == groups
        assert (np.abs(exact[s, s]) > 1e-6).sum() > own.sum(), name  # there is more than the blocks
        np.testing.assert_allclose(found[s, s], jnp.where(own, exact[s, s], 0.0), atol=1e-10, err_msg=name)


def test_of_full_rank_beside_blocks_it_is_the_ggn():
    one = case()
    found = fit(one, "kron_lowrank", rank=flatten(one.params).size).curvature
    assert isinstance(found, BlockLowRank)
    np.testing.assert_allclose(dense(found), dense_ggn(one, "cross_entropy"), atol=1e-8)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_predictions_and_determinants_are_those_of_the_dense_operator(structure):
    one = case()
    curvature = fit(one, structure, rank=3).curvature
    posterior = predicting_as_dense(one, curvature)
    expected = np.linalg.slogdet(np.asarray(dense(curvature) / 2 + jnp.eye(curvature.size)))[1]
    np.testing.assert_allclose(posterior.log_det_ratio(), expected, rtol=1e-9)


def per_layer(one):
    values = jnp.geomspace(0.1, 20.0, len(SHAPES))
    return values, prior_vector(values, one.params)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_prior_per_layer_is_exact(structure):
    one = case()
    with_a_prior_as_dense(one, fit(one, structure, rank=3).curvature, per_layer(one)[1])


@pytest.mark.parametrize("structure", STRUCTURES)
def test_products_for_a_precision_of_each_layer_are_those_of_the_posterior(monkeypatch, structure):
    monkeypatch.setattr(layerwise, "_SHARES", (10**6,))  # one number a group
    one = case()
    curvature, (values, prior) = fit(one, structure, rank=3).curvature, per_layer(one)
    held = [Batch(one.inputs, one.targets("cross_entropy"))]
    groups, products = layer_products(one.model_fn, one.params, curvature, held, together=3)
    expected = linearized_predictive(one.model_fn, Posterior.create(one.params, curvature, prior))(one.inputs)
    np.testing.assert_allclose(covariances(groups, products, values), expected.covariance, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_evidence_per_layer_and_its_gradient_are_those_of_the_dense_operator(structure):
    one = case()
    curvature, (values, _) = fit(one, structure, rank=3).curvature, per_layer(one)
    matrix, centred = dense(curvature), flatten(one.params)

    def expected(values):
        prior = prior_vector(values, one.params)
        ratio = jnp.linalg.slogdet(matrix / jnp.sqrt(prior) / jnp.sqrt(prior)[:, None] + jnp.eye(len(prior)))[1]
        return 0.5 * (ratio + (prior * centred**2).sum())

    found = jax.value_and_grad(evidence_loss(curvature, one.params))(values)
    for ours, theirs in zip(found, jax.value_and_grad(expected)(values), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-8)


@pytest.mark.parametrize("structure", ["kron", "ekfac"])
def test_more_data_add_exactly(structure):
    one = case()
    halves = [fit(dataclasses.replace(one, inputs=some), structure).curvature for some in (one.inputs, one.inputs[3:])]
    found, expected = dense(add(*halves)), sum(dense(half) for half in halves)
    for i in (1, 3, 4):
        s = slices(one)[i]
        np.testing.assert_allclose(found[s, s], expected[s, s], atol=1e-9)


def test_blocks_past_the_bound_are_diagonal_and_named(monkeypatch):
    monkeypatch.setattr(layers, "_MOST_IN_ROWS", 700)  # the kernel's take 8 * 9 * 9

    def model(x, p):  # a function of its own, since layers are remembered by it
        return _network(x, p)

    found = fit(case(model), "kron")
    assert isinstance(parts_of(found.curvature)["place"], RowBlocks)
    monkeypatch.setattr(layers, "_MOST_IN_ROWS", 600)

    def other(x, p):
        return _network(x, p)

    found = fit(case(other), "kron")
    assert isinstance(parts_of(found.curvature)["kernel"], Diagonal)
    assert (
        "1 of a dense block for each row, and a diagonal for kernel, place, which are none either" in found.plan.reason
    )
