"""Posteriors of every structure against dense Gaussians."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from jax_core import create_ggn_mv, create_posterior_fn
from jax_core.operators import Diagonal
from jax_core.posterior import Posterior, gaussian_log_likelihood, log_marginal_likelihood, prior_vector
from tests.cases import Case, dense_ggn, dense_jacobian, flatten, mlp

pytestmark = pytest.mark.in_turns

STRUCTURES = ("full", "diagonal", "lanczos", "nystrom")


def fit(case: Case, structure: str, rank: int | None = None):
    mv = create_ggn_mv(case.model_fn, case.params, case.data("cross_entropy"), "cross_entropy")
    options = {"rank": flatten(case.params).size if rank is None else rank, "key": jax.random.key(0)}
    options = {} if structure in ("full", "diagonal") else options
    return create_posterior_fn(structure, mv=mv, layout=case.params, **options)


def dense_curvature(case: Case, structure: str) -> jax.Array:
    matrix = dense_ggn(case, "cross_entropy")
    return jnp.diag(jnp.diagonal(matrix)) if structure == "diagonal" else matrix


def priors(case: Case):
    size = flatten(case.params).size
    per_layer = jnp.array([0.5, 1.0, 2.0, 4.0])
    return {
        "scalar": (2.0, 2.0 * jnp.ones(size)),
        "per_layer": (per_layer, jnp.repeat(per_layer, np.array([x.size for x in jax.tree.leaves(case.params)]))),
        "per_parameter": (jnp.linspace(0.5, 3, size), jnp.linspace(0.5, 3, size)),
        "tree": (jax.tree.map(lambda x: 1.5 + 0 * x, case.params), 1.5 * jnp.ones(size)),
    }


@pytest.mark.parametrize("prior", ["scalar", "per_layer", "per_parameter", "tree"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_products_and_determinant_are_the_dense_ones(x64, structure, prior):
    case = mlp()
    given, diagonal = priors(case)[prior]
    precision = dense_curvature(case, structure) / (0.5**2 * 3.0) + jnp.diag(diagonal)
    posterior = fit(case, structure)({"prior_prec": given, "sigma_noise": 0.5, "temperature": 3.0})
    v = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(5), leaf.shape), case.params)
    covariance = jnp.linalg.inv(precision)
    np.testing.assert_allclose(flatten(posterior.cov_mv(v)), covariance @ flatten(v), atol=1e-8)
    np.testing.assert_allclose(flatten(posterior.precision_mv(v)), precision @ flatten(v), atol=1e-7)
    np.testing.assert_allclose(posterior.logdet(), np.linalg.slogdet(np.asarray(precision))[1], rtol=1e-9)
    jacobian = dense_jacobian(case)
    expected = jnp.einsum("bcp,pq,bdq->bcd", jacobian, covariance, jacobian)
    np.testing.assert_allclose(posterior.output_covariance(jacobian), expected, atol=1e-8)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_scale_times_its_transpose_is_the_covariance(x64, structure):
    posterior = fit(mlp(), structure)({"prior_prec": 2.0})
    root = jax.vmap(posterior.scale_flat)(jnp.eye(posterior.size)).T
    covariance = jax.vmap(posterior.cov_flat)(jnp.eye(posterior.size))
    np.testing.assert_allclose(root @ root.T, covariance, atol=1e-9)


@pytest.mark.parametrize("structure", [*STRUCTURES, "lobpcg"])
def test_samples_have_the_posteriors_mean_and_covariance(x64, structure):
    """In units of the posterior, where the tightest direction counts as much as the widest."""
    case, count = mlp(), 20_000
    posterior = fit(case, structure, rank=8)({"prior_prec": 2.0})
    deviations = jax.vmap(flatten)(posterior.sample(jax.random.key(1), count)) - flatten(case.params)
    root = jnp.linalg.cholesky(jax.vmap(posterior.cov_flat)(jnp.eye(posterior.size)))
    standard = jax.scipy.linalg.solve_triangular(root, deviations.T, lower=True)
    assert jnp.abs(standard.mean(1)).max() < 4.5 / count**0.5
    # the empirical covariance of standard normals has its eigenvalues in (1 +- sqrt(P / N))^2 (Marchenko and Pastur)
    spread = (posterior.size / count) ** 0.5
    eigenvalues = jnp.linalg.eigvalsh(standard @ standard.T / count)
    assert (1 - spread) ** 2 - 0.01 < eigenvalues[0] < 1 < eigenvalues[-1] < (1 + spread) ** 2 + 0.01


@pytest.mark.parametrize("structure", STRUCTURES)
def test_evidence_parts_are_the_dense_ones(x64, structure):
    case = mlp()
    posterior = fit(case, structure)({"prior_prec": 2.0})
    precision = dense_curvature(case, structure) + 2 * jnp.eye(posterior.size)
    evidence = log_marginal_likelihood(posterior, -3.0)
    ratio = np.linalg.slogdet(np.asarray(precision))[1] - posterior.size * np.log(2.0)
    np.testing.assert_allclose(evidence.complexity, ratio, rtol=1e-9)
    np.testing.assert_allclose(evidence.scatter, 2 * (flatten(case.params) ** 2).sum(), rtol=1e-12)
    np.testing.assert_allclose(evidence.total, -3.0 - 0.5 * (ratio + evidence.scatter), rtol=1e-12)


def test_gaussian_log_likelihood_is_scipys(x64):
    from scipy.stats import norm

    residual = np.array([0.3, -1.0, 2.0])
    expected = norm(scale=0.7).logpdf(residual).sum()
    np.testing.assert_allclose(gaussian_log_likelihood(0.5 * (residual**2).sum(), 3, 0.7), expected, rtol=1e-12)


def test_own_structures_are_taken_without_registering():
    case = mlp()
    size = flatten(case.params).size
    ready = create_posterior_fn(Diagonal(jnp.ones(size)), layout=case.params)
    mine = create_posterior_fn(lambda mv, layout: Diagonal(jnp.ones(size)), mv=lambda v: v, layout=case.params)
    for posterior_fn in (ready, mine):
        v = posterior_fn({"prior_prec": 1.0}).cov_mv(case.params)
        np.testing.assert_allclose(flatten(v), flatten(case.params) / 2, rtol=1e-6)


def test_bad_priors_are_refused():
    case = mlp()
    posterior_fn = create_posterior_fn(Diagonal(jnp.ones(flatten(case.params).size)), layout=case.params)
    with pytest.raises(TypeError, match="prior_precision"):
        posterior_fn({"prior_precision": 1.0})
    with pytest.raises(TypeError, match="not both"):
        posterior_fn({"prior_prec": 1.0, "sigma_noise": 1.0, "sigma_squared": 1.0})
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="positive"):
            posterior_fn({"prior_prec": bad})
    with pytest.raises(ValueError, match=r"shape \(7,\) fits neither"):
        prior_vector(jnp.ones(7), case.params)


def test_unknown_structure_and_missing_rank_are_named():
    with pytest.raises(ValueError, match="'kron'"):
        create_posterior_fn("kron", mv=lambda v: v, layout=3)
    with pytest.raises(TypeError, match="needs a rank"):
        create_posterior_fn("lanczos", mv=lambda v: v, layout=3)
    with pytest.raises(TypeError, match="layout"):
        create_posterior_fn("full")


def test_low_rank_covariance_keeps_its_digits_beside_a_large_prior():
    """Log-determinants are sums of log(1 + m): in float32 a small curvature is not lost in P log tau."""
    posterior = Posterior(jnp.zeros(10_000), Diagonal(jnp.full(10_000, 1e-6)), jnp.float32(1e4))
    np.testing.assert_allclose(posterior.log_det_ratio(), 1e-2, rtol=1e-3)
