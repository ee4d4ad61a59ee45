"""A spectrum in groups gives what the whole of it gives, exactly where every group holds one number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_core.tuning.grouped
from jax_core import FitOptions, LoaderPasses, Posterior, as_likelihood, fit_curvature, linearized_predictive
from jax_core.operators import Projection
from jax_core.tuning.evidence import evidence_loss, log_det
from jax_core.tuning.grouped import GroupedGrid, covariances, group_sizes, runs_of
from jax_core.tuning.held_out import predictions_on_grid
from tests.cases import attention, cnn, mlp

pytestmark = pytest.mark.in_turns

GRID = np.array([0.05, 1.0, 30.0])


def curvature_of(case, structure):
    passes = LoaderPasses([(case.inputs, case.targets("cross_entropy"))])
    passes.preload()
    how = FitOptions(structure=structure, rank=4, progress=False)
    what = (case.model_fn, case.params, as_likelihood("cross_entropy"), passes, how)
    return fit_curvature(*what, key=jax.random.key(0)).curvature


@pytest.mark.parametrize("structure", ["kron", "kron_lowrank"])
@pytest.mark.parametrize("make", [mlp, cnn, attention])
def test_covariances_on_a_grid_are_those_of_each_posterior(x64, monkeypatch, structure, make):
    monkeypatch.setattr(jax_core.tuning.grouped, "_SHARE", 10**6)  # one number a group
    case = make()
    curvature = curvature_of(case, structure)
    found = predictions_on_grid(case.model_fn, case.params, curvature, GRID, lambda outputs: outputs)(case.inputs)
    for t, precision in enumerate(GRID):
        posterior = Posterior.create(case.params, curvature, jnp.asarray(precision))
        expected = linearized_predictive(case.model_fn, posterior)(case.inputs)
        np.testing.assert_allclose(found.covariance[:, t], expected.covariance, atol=1e-9)
        np.testing.assert_allclose(found.mean[:, t], expected.mean, atol=1e-12)


@pytest.mark.parametrize("structure", ["kron", "ekfac", "kron_lowrank"])
def test_log_determinants_are_those_of_each_posterior(x64, monkeypatch, structure):
    monkeypatch.setattr(jax_core.tuning.grouped, "_SHARE", 10**6)
    case = cnn()
    curvature = curvature_of(case, structure)
    ratio = log_det(curvature)
    for precision in GRID:
        expected = Posterior.create(case.params, curvature, jnp.asarray(precision)).log_det_ratio()
        np.testing.assert_allclose(ratio(precision), expected, rtol=1e-9)


@pytest.mark.parametrize("structure", ["kron", "kron_lowrank"])
def test_the_evidence_per_layer_has_the_posterior_s_determinant(x64, structure):
    case = cnn()
    curvature = curvature_of(case, structure)
    loss = evidence_loss(curvature, case.params)
    layers = jnp.arange(1.0, 1 + len(jax.tree.leaves(case.params)))
    prior = jnp.concatenate(
        [jnp.full(leaf.size, v) for leaf, v in zip(jax.tree.leaves(case.params), layers, strict=True)]
    )
    posterior = Posterior.create(case.params, curvature, prior)
    expected = 0.5 * (posterior.log_det_ratio() + posterior.scatter())
    np.testing.assert_allclose(loss(layers), expected, rtol=1e-9)


@pytest.mark.parametrize("size", [1, 39, 1000, 28_714])
def test_groups_hold_every_coordinate_once_and_the_largest_alone(size):
    found = group_sizes(size)
    assert sum(found) == size and found[0] == 1
    assert max(found) <= max(1, size // 40)


@pytest.mark.parametrize("size", [1, 39, 1000, 28_714])
def test_runs_hold_every_group_once_in_its_place(size):
    sizes = group_sizes(size)
    runs = runs_of(sizes)
    assert [run.width for run in runs for _ in range(run.groups)] == list(sizes)
    assert [run.start for run in runs] == np.cumsum([0, *(run.groups * run.width for run in runs)])[:-1].tolist()
    assert len(runs) < 25


@pytest.mark.parametrize("low_rank", [False, True])
def test_groups_of_several_numbers_have_their_mean(x64, low_rank):
    keys = jax.random.split(jax.random.key(0), 3)
    weights, rows = jax.random.uniform(keys[0], (130,)), jax.random.normal(keys[1], (4, 3, 130))
    columns, values = jax.random.normal(keys[2], (130, 5)), jnp.arange(1.0, 6)
    projection = Projection(None, weights, columns, values) if low_rank else Projection(None, weights, None, None)
    known = GroupedGrid.of(jnp.asarray(GRID), projection)
    found = covariances(lambda outputs: outputs.covariance, known, jnp.zeros((4, 3)), rows)
    assert len({run.groups for run in runs_of(known.spectrum.sizes)}) > 1
    means = np.repeat(np.asarray(known.spectrum.values), known.spectrum.sizes)
    precision = np.zeros((130, 130))
    precision[np.diag_indices(130)] = means[np.argsort(np.asarray(known.spectrum.order))]
    if low_rank:
        precision += (np.asarray(columns) * np.asarray(values)) @ np.asarray(columns).T
    for t, tau in enumerate(GRID):
        expected = rows @ np.linalg.inv(precision + tau * np.eye(130)) @ jnp.swapaxes(rows, 1, 2)
        np.testing.assert_allclose(found[:, t], expected, rtol=1e-9)
