"""Outer products of gradients in the place of the loss's Hessian, against gradients one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_core import FitOptions, LoaderPasses, as_likelihood, fit_curvature
from jax_core.curvature.fisher_likelihood import DrawnFisher, DrawnTargets, EmpiricalFisher
from jax_core.likelihoods import Categorical, dense_hessian
from jax_core.xla.compiled import as_jit_argument
from tests.cases import LOSSES, _mlp, cnn, dense_ggn, dense_jacobian, flatten, mlp, sample_loss

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.in_turns]
MODEL = as_jit_argument(_mlp)


def batches(case, loss, size=4):
    data = case.data(loss)
    return [jax.tree.map(lambda leaf, i=i: leaf[i : i + size], data) for i in range(0, len(case.inputs), size)]


def fit(case, loss, loader=None, key=0, **options):
    passes = LoaderPasses(batches(case, loss) if loader is None else loader)
    how = FitOptions(progress=False, **({"structure": "full", "tolerance": 0.0} | options))
    model = MODEL if case.name == "mlp" else as_jit_argument(case.model_fn)
    return fit_curvature(model, case.params, as_likelihood(loss), passes, how, key=jax.random.key(key))


def matrix(operator):
    return jax.vmap(operator.mv)(jnp.eye(operator.size))


def sum_of_outer_products(case, loss):
    """By one gradient a sample."""
    total = 0
    for x, y in zip(case.inputs, case.targets(loss), strict=True):
        gradient = flatten(jax.grad(lambda p, x=x, y=y: sample_loss(loss)(case.model_fn(x, p), y))(case.params))
        total = total + jnp.outer(gradient, gradient)
    return total


@pytest.mark.parametrize(("case", "loss"), [*((mlp, loss) for loss in LOSSES), (cnn, "cross_entropy")])
def test_empirical_fisher_is_the_sum_of_gradients_outer_products(case, loss):
    wanted = sum_of_outer_products(case(), loss)
    found = fit(case(), loss, curvature="empirical_fisher")
    np.testing.assert_allclose(matrix(found.curvature), wanted, atol=1e-10)
    diagonal = fit(case(), loss, curvature="empirical_fisher", structure="diag").curvature.diagonal
    np.testing.assert_allclose(diagonal, jnp.diagonal(wanted), atol=1e-10)
    np.testing.assert_allclose(found.nll, fit(case(), loss).nll)


@pytest.mark.parametrize("method", ["gram", "nystrom", "lanczos"])
def test_low_ranks_reduce_the_empirical_fisher(method):
    wanted = sum_of_outer_products(mlp(), "cross_entropy")
    how = {"rank": 12, "passes": 2} if method != "lanczos" else {"rank": 20}
    found = fit(mlp(), "cross_entropy", curvature="empirical_fisher", structure="lowrank", method=method, **how)
    np.testing.assert_allclose(matrix(found.curvature), wanted, atol=1e-6)  # of nine samples: its rank is nine


@pytest.mark.parametrize("curvature", ["empirical_fisher", "mc_fisher"])
@pytest.mark.parametrize("structure", ["kron", "ekfac", "kron_lowrank"])
def test_kronecker_structures_reduce_either_fisher(structure, curvature):
    full = fit(mlp(), "cross_entropy", curvature=curvature).curvature
    found = fit(mlp(), "cross_entropy", curvature=curvature, structure=structure, rank=42).curvature
    if structure != "kron":
        np.testing.assert_allclose(found.trace(), full.trace(), rtol=1e-6)
    assert np.linalg.eigvalsh(matrix(found)).min() > -1e-9 and float(found.trace()) > 0


@pytest.mark.parametrize("loss", LOSSES)
def test_drawn_fisher_of_many_samples_is_nearly_the_ggn(loss):
    case = mlp()
    one = case.data(loss)
    # other noise in the last digits, so that each copy of the data draws targets of its own
    many = [jax.tree.map(lambda leaf, i=i: leaf * (1 + i * 1e-6) if leaf.ndim > 1 else leaf, one) for i in range(800)]
    joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *many)
    if loss != "cross_entropy":
        joined["target"] = jnp.concatenate([one["target"]] * 800)
    found = matrix(fit(case, loss, [joined], curvature="mc_fisher").curvature) / 800
    wanted = dense_ggn(case, loss)
    assert jnp.linalg.norm(found - wanted) < 0.08 * jnp.linalg.norm(wanted)


@pytest.mark.parametrize("loss", LOSSES)
def test_drawn_targets_are_the_same_on_each_pass_and_others_by_another_key(loss):
    case, likelihood = mlp(), as_likelihood(loss)
    first, second = (
        DrawnTargets(LoaderPasses(batches(case, loss)), MODEL, case.params, likelihood, jax.random.key(key))
        for key in (0, 1)
    )
    passes = [[batch.target[1] for batch in drawn] for drawn in (first, first, second)]
    assert all(jnp.array_equal(a, b) for a, b in zip(*passes[:2], strict=True))
    assert not all(jnp.array_equal(a, b) for a, b in zip(passes[0], passes[2], strict=True))
    assert jnp.array_equal(first.peek().target[1], passes[0][0])
    given = [batch.target[0] for batch in first.with_progress("")]
    np.testing.assert_array_equal(jnp.concatenate(given), case.targets(loss))


def test_methods_of_several_passes_see_one_drawn_matrix():
    how = {"curvature": "mc_fisher", "tolerance": 0.0}
    wanted = matrix(fit(mlp(), "cross_entropy", **how).curvature)
    found = fit(mlp(), "cross_entropy", structure="lowrank", method="lanczos", rank=20, **how).curvature
    np.testing.assert_allclose(matrix(found), wanted, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_products_over_the_outputs_are_rank_one_at_the_right_targets(loss):
    likelihood, case = as_likelihood(loss), mlp()
    outputs = jax.vmap(lambda x: case.model_fn(x, case.params))(case.inputs)
    given, drawn = case.targets(loss), case.targets(loss, key=8)
    gradients = jax.vmap(jax.grad(sample_loss(loss)))
    for kind, target, at in (
        (EmpiricalFisher(likelihood), given, given),
        (DrawnFisher(likelihood), (given, drawn), drawn),
    ):
        g = gradients(outputs, at)
        np.testing.assert_allclose(dense_hessian(kind, outputs, target), g[:, :, None] * g[:, None, :], atol=1e-12)
        np.testing.assert_allclose(kind.nll(outputs, target), likelihood.nll(outputs, given))


def test_positions_that_are_ignored_have_no_curvature_at_drawn_targets_either():
    likelihood, case = Categorical(ignore_index=-100), mlp()
    data = case.data("cross_entropy")
    data["target"] = data["target"].at[jnp.array([1, 4])].set(-100)
    seen = jnp.array([0, 2, 3, 5, 6, 7, 8])
    passes = DrawnTargets(LoaderPasses([data]), MODEL, case.params, likelihood, jax.random.key(0))
    drawn = next(iter(passes)).target[1]
    assert (drawn[jnp.array([1, 4])] == -100).all() and (drawn[seen] >= 0).all()
    how = FitOptions(progress=False, structure="full", curvature="mc_fisher")
    found = fit_curvature(MODEL, case.params, likelihood, LoaderPasses([data]), how, key=jax.random.key(0))
    rows = dense_jacobian(case)[seen]
    p = jax.nn.softmax(jax.vmap(lambda x: case.model_fn(x, case.params))(case.inputs))[seen]
    gradients = jnp.einsum("bc,bcp->bp", p - jax.nn.one_hot(drawn[seen], 3), rows)
    np.testing.assert_allclose(matrix(found.curvature), gradients.T @ gradients, atol=1e-10)
