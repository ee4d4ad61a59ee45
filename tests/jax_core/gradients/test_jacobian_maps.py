"""ProjectedJacobians Jacobians, dense layers in factors, lead to the predictive of written-out rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_core.gradients.jacobians
from jax_core import Dense, Diagonal, LowRank, Posterior
from jax_core.gradients import jacobian_maps
from jax_core.gradients.jacobian_maps import map_projected
from jax_core.gradients.subspace import Subspace
from jax_core.gradients.weight_order import find_order
from jax_core.operators import BlockDiagonal, Projection
from jax_core.predictive import linearized_predictive
from jax_core.xla.compiled import as_jit_argument
from jax_core.xla.convolutions import with_fast_convolutions
from tests.cases import attention, cnn, dense_ggn, dense_jacobian, mlp

pytestmark = pytest.mark.in_turns


@pytest.fixture(autouse=True)
def small_matrices_are_worth_it(monkeypatch):
    monkeypatch.setattr(jax_core.gradients.jacobians, "_WORTH", 1)


def posterior_of(case, prior=2.0):
    size = dense_jacobian(case).shape[-1]
    basis = jnp.linalg.qr(jax.random.normal(jax.random.key(3), (size, 5)))[0]
    return Posterior.create(case.params, LowRank(basis, jnp.arange(5.0, 0, -1), jnp.zeros(())), jnp.asarray(prior))


def plain(columns):
    """A projection with these columns and rows as they are."""
    return Projection(None, jnp.ones(()), columns, jnp.ones(columns.shape[1]))


def dense_covariance(case, posterior):
    covariance = jax.vmap(posterior.cov_flat)(jnp.eye(posterior.size))
    rows = dense_jacobian(case)
    return rows @ covariance @ jnp.swapaxes(rows, 1, 2)


def test_projections_are_those_of_the_dense_jacobian(x64):
    for case in (mlp(), cnn(), attention()):
        rows = dense_jacobian(case)
        basis = jax.random.normal(jax.random.key(4), (rows.shape[-1], 3))
        found = map_projected(case.model_fn, case.params, Subspace(plain(basis)), lambda outputs, projected: projected)(
            case.inputs
        )
        np.testing.assert_allclose(found.inner, rows @ basis, atol=1e-11)
        np.testing.assert_allclose(found.gram, rows @ jnp.swapaxes(rows, 1, 2), atol=1e-11)


def test_projections_can_be_part_of_a_program(x64):
    """What is prepared once must not belong to the program that was traced first."""
    case = cnn()
    basis = jax.random.normal(jax.random.key(4), (dense_jacobian(case).shape[-1], 3))
    project = map_projected(
        case.model_fn, case.params, Subspace(plain(basis)), lambda outputs, projected: projected.inner
    )
    inside = jax.jit(project)(case.inputs)
    np.testing.assert_allclose(project(case.inputs), inside, atol=1e-12)


def test_a_posterior_cuts_its_vectors_once_for_all_predictives(x64):
    case = cnn()
    posterior = posterior_of(case)
    linearized_predictive(case.model_fn, posterior)(case.inputs)
    cut = posterior.subspace._latest[2]
    linearized_predictive(case.model_fn, posterior, tuple)(case.inputs[:2])
    assert posterior.subspace._latest[2] is cut


def test_many_rows_meet_a_basis_a_few_examples_at_a_time(monkeypatch):
    """So that the rows of one loop stay below the size from which fresh pages are mapped."""
    case = cnn()
    monkeypatch.setattr(jacobian_maps, "_TOGETHER_BYTES", 3 * 4 * dense_jacobian(case)[0].size)
    model = as_jit_argument(with_fast_convolutions(case.model_fn))
    order = find_order(model, case.params, case.inputs[0])
    sizes, layout = jacobian_maps._plan_projected(model, case.params, case.inputs[0], order=order)
    assert (
        sizes.chunk * sizes.group * 4 * 3 * layout.row_size <= jacobian_maps._TOGETHER_BYTES < 64 * 4 * layout.row_size
    )


@pytest.mark.parametrize("together", [1, 4, 64])
@pytest.mark.parametrize("count", [1, 2, 9])
@pytest.mark.parametrize("make", [mlp, cnn])
def test_predictive_is_the_dense_one_for_every_batch_size(x64, monkeypatch, make, together, count):
    monkeypatch.setattr(jacobian_maps, "_TOGETHER", together)
    case = make()
    posterior = posterior_of(case)
    found = linearized_predictive(case.model_fn, posterior)(case.inputs[:count])
    np.testing.assert_allclose(found.covariance, dense_covariance(case, posterior)[:count], atol=1e-10)
    assert found.mean.shape == (min(count, len(case.inputs)), 3)


@pytest.mark.parametrize("make", [mlp, cnn])
def test_priors_per_parameter_and_other_structures_are_projected_too(x64, make):
    case = make()
    size = dense_jacobian(case).shape[-1]
    for posterior in (
        posterior_of(case, prior=jnp.linspace(1.0, 2.0, size)),
        Posterior.create(case.params, Diagonal(jnp.linspace(0.0, 3.0, size)), jnp.asarray(2.0)),
        Posterior.create(case.params, Dense.from_matrix(dense_ggn(case, "mse")), jnp.linspace(1.0, 2.0, size)),
        Posterior.create(case.params, BlockDiagonal((Diagonal(jnp.linspace(0.0, 3.0, size)),)), jnp.asarray(2.0)),
    ):
        found = linearized_predictive(case.model_fn, posterior)(case.inputs)
        np.testing.assert_allclose(found.covariance, dense_covariance(case, posterior), atol=1e-10)


def test_no_inputs_give_no_predictions(x64):
    case = mlp()
    found = linearized_predictive(case.model_fn, posterior_of(case))(case.inputs[:0])
    assert found.covariance.shape == (0, 3, 3)
