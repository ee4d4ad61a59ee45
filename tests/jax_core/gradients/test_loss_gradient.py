"""One pass over the batches gives the gradient of the loss of all of them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_core.data.batches import Batch
from jax_core.gradients.loss_gradient import loss_gradient
from jax_core.likelihoods import Categorical, Gaussian


def network(x, params):
    return jnp.tanh(x @ params["a"]) @ params["b"]


PARAMS = {"b": jax.random.normal(jax.random.key(0), (5, 3)), "a": jax.random.normal(jax.random.key(1), (4, 5))}
INPUTS = jax.random.normal(jax.random.key(2), (23, 4))
TARGETS = {
    "categorical": (Categorical(), jax.random.randint(jax.random.key(3), (23,), 0, 3)),
    "ignored": (Categorical(ignore_index=0), jax.random.randint(jax.random.key(3), (23,), 0, 3)),
    "gaussian": (Gaussian(), jax.random.normal(jax.random.key(3), (23, 3))),
}


@pytest.mark.parametrize("kind", list(TARGETS))
@pytest.mark.parametrize("sizes", [(23,), (10, 10, 3), (3, 10, 10)])
def test_batches_add_up(kind, sizes):
    likelihood, target = TARGETS[kind]
    edges = np.cumsum((0, *sizes))
    batches = [Batch(INPUTS[a:b], target[a:b]) for a, b in itertools.pairwise(edges)]
    found, samples = loss_gradient(network, PARAMS, likelihood, iter(batches))

    def loss(params):
        return likelihood.nll(jax.vmap(lambda x: network(x, params))(INPUTS), target).sum()

    whole = jax.grad(loss)(PARAMS)
    assert samples == 23
    np.testing.assert_allclose(found, np.concatenate([whole["a"].ravel(), whole["b"].ravel()]), rtol=1e-4, atol=1e-5)


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="no samples"):
        loss_gradient(network, PARAMS, Gaussian(), [])
