"""Covariances under a precision for each tensor are those of the posterior; a search by them never loses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_core import Posterior, linearized_predictive
from jax_core.data.batches import Batch
from jax_core.operators import BlockDiagonal, Diagonal
from jax_core.posterior import prior_vector
from jax_core.tuning import layerwise
from jax_core.tuning.layerwise import covariances, layer_products, refine
from tests.cases import attention, cnn, mlp
from tests.jax_core.tuning.test_grouped import curvature_of

pytestmark = pytest.mark.in_turns


def products_of(case, structure, monkeypatch, together=None):
    monkeypatch.setattr(layerwise, "_SHARES", (10**6,))  # one number a group
    batches = [Batch(case.inputs[:2], case.targets("cross_entropy")[:2])]
    batches.append(Batch(case.inputs[2:], case.targets("cross_entropy")[2:]))
    curvature = curvature_of(case, structure)
    classes = jax.eval_shape(case.model_fn, case.inputs[0], case.params).size
    found = layer_products(case.model_fn, case.params, curvature, batches, together=together or classes)
    return curvature, *found


@pytest.mark.parametrize("structure", ["kron", "ekfac", "kron_lowrank", "lowrank", "diag", "full"])
@pytest.mark.parametrize("make", [mlp, cnn, attention])
def test_covariances_are_those_of_the_posterior(x64, monkeypatch, structure, make):
    case = make()
    curvature, groups, products = products_of(case, structure, monkeypatch)
    layers = jnp.geomspace(0.1, 20.0, len(jax.tree.leaves(case.params)))
    posterior = Posterior.create(case.params, curvature, prior_vector(layers, case.params))
    expected = linearized_predictive(case.model_fn, posterior)(case.inputs)
    np.testing.assert_allclose(covariances(groups, products, layers), expected.covariance, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(products.mean, expected.mean, atol=1e-12)


def test_positions_have_their_own_block(x64, monkeypatch):
    case = mlp()
    _, groups, whole = products_of(case, "kron_lowrank", monkeypatch)
    targets = jnp.zeros((len(case.inputs), 3))
    curvature = curvature_of(case, "kron_lowrank")
    _, alone = layer_products(case.model_fn, case.params, curvature, [Batch(case.inputs, targets)], together=1)
    layers = jnp.ones(len(jax.tree.leaves(case.params)))
    expected = jnp.diagonal(covariances(groups, whole, layers), axis1=1, axis2=2).reshape(-1)
    np.testing.assert_allclose(covariances(groups, alone, layers)[:, 0, 0], expected, rtol=1e-9)


def apart(products, covariance, other):
    """Wants the first tensor's share of the variance at one, the rest gone, and the other at three."""
    return (jnp.trace(covariance, axis1=1, axis2=2).mean() - 1.0) ** 2 + (other - 3.0) ** 2


def test_a_search_ends_where_the_loss_is_smaller_within_its_bounds(x64, monkeypatch):
    _, groups, products = products_of(mlp(), "kron_lowrank", monkeypatch)
    found = refine(groups, products, apart, 1.0, 1.0, (0.5, 2.0))
    assert found.loss < found.start
    np.testing.assert_allclose(found.other, 2.0)
    covariance = covariances(groups, products, jnp.asarray(found.precisions))
    np.testing.assert_allclose(apart(products, covariance, found.other), found.loss, rtol=1e-9)


def test_a_search_that_gains_nothing_stays_where_it_began(x64, monkeypatch):
    _, groups, products = products_of(mlp(), "kron", monkeypatch)
    found = refine(groups, products, lambda *_: jnp.array(2.0), 5.0, 1.0, (0.5, 2.0))
    np.testing.assert_allclose(found.precisions, 5.0)
    assert found.loss == found.start == 2.0


def test_what_has_no_precision_per_layer_is_refused_by_name():
    case = mlp()
    size = sum(leaf.size for leaf in jax.tree.leaves(case.params))
    with pytest.raises(TypeError, match="not BlockDiagonal"):
        whole = BlockDiagonal((Diagonal(jnp.ones(size)),))
        layer_products(case.model_fn, case.params, whole, [], together=3)


def test_products_that_do_not_fit_are_refused_with_the_remedy(monkeypatch):
    case = mlp()
    monkeypatch.setattr(layerwise, "_BYTES", 10)
    batch = Batch(case.inputs, case.targets("cross_entropy"))
    with pytest.raises(ValueError, match="fewer held-out samples"):
        layer_products(case.model_fn, case.params, curvature_of(case, "kron"), [batch], together=3)
