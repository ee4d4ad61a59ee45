"""Losses estimated from some of the training data agree with what the network loses on all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from jax_core.data.batches import Batch
from jax_core.operators import Diagonal
from jax_core.predictive import mean_field_2
from jax_core.tuning.collect import penalized_search
from jax_core.tuning.families import ClassFamily
from jax_core.tuning.joint import NO_UNCERTAINTY

INPUTS, FEATURES, CLASSES = 400, 3, 4
PARAMS = {"w": jax.random.normal(jax.random.key(0), (FEATURES, CLASSES))}
X = jax.random.normal(jax.random.key(1), (INPUTS, FEATURES))
Y = jax.random.categorical(jax.random.key(2), X @ PARAMS["w"])
PRECISIONS, TEMPERATURES, TRACE = np.array([0.5, 5.0, NO_UNCERTAINTY]), np.array([0.5, 1.0, 2.0]), 0.03


MODEL, FAMILY = Partial(lambda x, params: x @ params["w"]), ClassFamily(Partial(mean_field_2))


def searched(some, mean_nll):
    curvature = Diagonal(jnp.full(FEATURES * CLASSES, 30.0))
    how = {"together": CLASSES, "positions": 1, "precisions": PRECISIONS, "temperatures": TEMPERATURES}
    batches = [Batch(X[some], Y[some])]
    return penalized_search(
        MODEL, PARAMS, curvature, batches, FAMILY, **how, follow=1.0, mean_trace=TRACE, mean_nll=mean_nll
    )


def whole_mean():
    return float(-jnp.take_along_axis(jax.nn.log_softmax(X @ PARAMS["w"]), Y[:, None], 1).mean())


@pytest.mark.parametrize("seed", range(3))
def test_the_networks_own_loss_is_what_it_is_known_to_be(seed):
    some = np.random.default_rng(seed).permutation(INPUTS)[:40]
    found = searched(some, whole_mean())
    np.testing.assert_allclose(found.network.mean(), whole_mean() + TRACE, rtol=1e-4)
    np.testing.assert_allclose(found.table.losses[:, 2, 1].mean(), whole_mean() + TRACE, rtol=1e-3)


def test_a_sample_as_hard_as_all_of_them_is_left_as_it_is():
    plain, known = searched(np.arange(INPUTS), None), searched(np.arange(INPUTS), whole_mean())
    np.testing.assert_allclose(known.table.losses, plain.table.losses, atol=1e-4)
    np.testing.assert_allclose(known.scaled, plain.scaled, atol=1e-4)


def test_losses_of_easy_and_hard_samples_come_nearer_to_those_of_all():
    expected = searched(np.arange(INPUTS), None).table.losses.mean(0)
    errors = {}
    for kind, mean in {"plain": None, "known": whole_mean()}.items():
        draws = [np.random.default_rng(seed).permutation(INPUTS)[:40] for seed in range(6)]
        found = [searched(some, mean).table.losses.mean(0) for some in draws]
        errors[kind] = np.sqrt(np.square(np.array(found) - expected).mean(0))
    assert (errors["known"] < 0.7 * errors["plain"]).all()
