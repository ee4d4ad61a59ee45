"""The evidence's maximum against brute force."""

import jax.numpy as jnp
import numpy as np
import pytest

from jax_core.operators import Dense, Diagonal, LowRank
from jax_core.tuning import maximize_evidence, spectrum


def test_maximum_is_that_of_a_fine_grid():
    values = np.array([1e4, 300.0, 2.0, 0.1, 0.0])
    found = maximize_evidence(values, 5, 3.0)
    grid = np.exp(np.linspace(-18, 23, 400_001))
    loss = 0.5 * (np.log1p(values[:, None] / grid).sum(0) + grid * 3.0)
    np.testing.assert_allclose(found.prior_precision, grid[loss.argmin()], rtol=1e-3)
    np.testing.assert_allclose(found.loss, loss.min(), rtol=1e-9)


def test_fixed_point_of_mackay_holds():
    values = np.geomspace(1e-2, 1e5, 50)
    tau = maximize_evidence(values, 50, 7.0).prior_precision
    effective = (values / (values + tau)).sum()
    np.testing.assert_allclose(tau, effective / 7.0, rtol=1e-5)


def test_no_curvature_warns_at_the_edge():
    with pytest.warns(UserWarning, match="edge of the search"):
        maximize_evidence(np.zeros(3), 3, 1.0)


def test_spectrum_is_the_eigenvalues():
    for operator in (
        Diagonal(jnp.array([1.0, 2.0])),
        Dense.from_matrix(jnp.diag(jnp.array([1.0, 2.0]))),
        LowRank(jnp.eye(3)[:, :2], jnp.array([1.0, 2.0]), jnp.zeros(())),
    ):
        np.testing.assert_allclose(np.sort(spectrum(operator)), [1, 2], rtol=1e-6)
    with pytest.raises(TypeError, match="not at hand"):
        spectrum(object())
