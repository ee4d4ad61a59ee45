"""What a network has followed: nothing where the gradient is noise, all that a posterior assumes where none is left."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_core.operators import Dense, Diagonal, Symmetric
from jax_core.tuning.followed import followed_parameters
from jax_core.tuning.optimism import effective_parameters

SIZE, PRECISION = 400, 3.0
VALUES = np.geomspace(1e-2, 1e5, SIZE)
FOLLOWED = VALUES / (VALUES + PRECISION)
BASIS = np.linalg.qr(np.random.default_rng(0).normal(size=(SIZE, SIZE)))[0]
STRUCTURES = ("diagonal", "dense", "symmetric")


def made(structure):
    """A curvature with the eigenvalues, and its eigenvectors."""
    values, basis = jnp.asarray(VALUES), jnp.asarray(BASIS)
    if structure == "diagonal":
        return Diagonal(values), np.eye(SIZE)
    dense = Dense(values, basis)
    return dense if structure == "dense" else Symmetric.from_matrix(dense.matrix()), BASIS


def gradient_left(left, basis, seed=0):
    """Of noise of which a part is left, along each eigenvector."""
    return jnp.asarray(basis @ (np.sqrt(left * VALUES) * np.random.default_rng(seed).normal(size=SIZE)))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_without_a_gradient_all_of_the_effective_parameters_are_followed(x64, structure):
    curvature, _ = made(structure)
    found = followed_parameters(curvature, PRECISION, jnp.zeros(SIZE))
    np.testing.assert_allclose(found, effective_parameters(curvature, PRECISION), rtol=1e-6)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_of_untouched_noise_nothing_is_followed(x64, structure):
    curvature, basis = made(structure)
    found = followed_parameters(curvature, PRECISION, gradient_left(np.ones(SIZE), basis))
    assert 0 <= found < 0.15 * FOLLOWED.sum()
    assert followed_parameters(curvature, PRECISION, gradient_left(np.full(SIZE, 16.0), basis)) == 0


@pytest.mark.parametrize("structure", STRUCTURES)
def test_at_the_posteriors_mean_they_are_its_own(x64, structure):
    curvature, basis = made(structure)
    found = followed_parameters(curvature, PRECISION, gradient_left((1 - FOLLOWED) ** 2, basis))
    np.testing.assert_allclose(found, FOLLOWED.sum(), rtol=0.1)


@pytest.mark.parametrize("steps", [1e-3, 1e-2, 0.1])
def test_of_gradient_flow_that_stops_early_they_are_the_directions_it_has_come_down(x64, steps):
    left = np.exp(-VALUES * steps) ** 2
    curvature, basis = made("dense")
    expected = np.minimum(FOLLOWED, 1 - np.sqrt(left)).sum()
    found = np.mean([followed_parameters(curvature, PRECISION, gradient_left(left, basis, seed)) for seed in range(5)])
    np.testing.assert_allclose(found, expected, rtol=0.15)


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_a_gradient_of_a_share_of_the_samples_tells_the_same(x64, share):
    curvature, basis = made("dense")
    half = np.full(SIZE, 0.25)
    whole = followed_parameters(curvature, PRECISION, gradient_left(half, basis))
    part = [
        followed_parameters(curvature, PRECISION, gradient_left(1 - share + share * half, basis, seed), share=share)
        for seed in range(5)
    ]
    np.testing.assert_allclose(np.mean(part), whole, rtol=0.2)


@pytest.mark.parametrize("seed", range(3))
def test_they_are_between_none_and_all(seed):
    gradient = 30 * jax.random.normal(jax.random.key(seed), (SIZE,))
    found = followed_parameters(Diagonal(jnp.asarray(VALUES, jnp.float32)), PRECISION, gradient)
    assert 0 <= found <= FOLLOWED.sum() * 1.01
