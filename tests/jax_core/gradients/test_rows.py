"""Rows of the curvature: R^T R is the GGN, and what a tolerance drops is bounded."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_core import Categorical, Gaussian, LoaderPasses, as_likelihood
from jax_core.curvature import data_sums
from jax_core.gradients import row_stream
from jax_core.gradients.row_stream import RowStream
from jax_core.gradients.rows import RowPlan, loss_rows
from jax_core.likelihoods import Bernoulli, Custom, Heteroscedastic, dense_hessian
from jax_core.xla.compiled import as_jit_argument
from tests.cases import CASES, LOSSES, dense_ggn, mlp

pytestmark = pytest.mark.in_turns


def add_gram(carry, block, extra):
    return carry + block.T @ block


def cubed(output, target):
    return jnp.square(output.sum()) + (output**4).sum()


def stream(case, likelihood, target, tolerance, cut=4):
    batches = [(case.inputs[i : i + cut], target[i : i + cut]) for i in range(0, len(case.inputs), cut)]
    passes = LoaderPasses(batches)
    return RowStream(as_jit_argument(case.model_fn), case.params, likelihood, passes, tolerance=tolerance)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("make", CASES)
def test_rows_are_a_root_of_the_ggn(x64, make, loss):
    case = make()
    rows = stream(case, as_likelihood(loss), case.targets(loss), 0.0).matrix(2**30)
    np.testing.assert_allclose(rows.T @ rows, dense_ggn(case, loss), atol=1e-10)


@pytest.mark.parametrize("committed", [True, False])
def test_a_pass_takes_one_program_of_each_kind(monkeypatch, compilations, committed):
    monkeypatch.setattr(row_stream, "plan_rows", lambda *_: RowPlan(8, 8))  # 27 rows in four blocks
    case = mlp()
    if committed:  # as arrays from torch are
        case = dataclasses.replace(case, params=jax.device_put(case.params, jax.devices()[0]))
    programs = (row_stream._advance, data_sums.evaluate)
    for program in programs:
        program.clear_cache()  # another test may have compiled the same
    rows = stream(case, as_likelihood("mse"), case.targets("mse"), 0.0)
    found = rows.fold(add_gram, jnp.zeros((rows.size, rows.size)))
    assert [compilations(program) for program in programs] == [1, 1]
    assert (rows.sums.samples, rows.sums.outputs, rows.num_rows) == (9, 27, 27)
    np.testing.assert_allclose(found, dense_ggn(case, "mse"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-2, 0.1, 0.5])
def test_no_more_than_the_tolerance_is_dropped(x64, tolerance):
    outputs = 3 * jax.random.normal(jax.random.key(0), (50, 6))
    target = jnp.zeros(50, int)
    sample, cotangents = loss_rows(Categorical(), outputs, target, tolerance)
    whole = jnp.trace(dense_hessian(Categorical(), outputs, target), axis1=1, axis2=2).sum()
    kept = np.square(cotangents.values).sum()
    assert (1 - tolerance) * whole <= kept <= whole * (1 + 1e-12)
    assert len(sample) < 50 * 6


@pytest.mark.parametrize("count", [5, 2_000])
def test_equal_curvatures_are_all_kept(count):
    outputs = jnp.zeros((count, 2))
    sample, cotangents = loss_rows(Gaussian(), outputs, outputs, 1e-3)
    assert len(sample) == 2 * count
    np.testing.assert_allclose(np.square(cotangents.values).sum(), 2 * count, rtol=1e-6)


@pytest.mark.parametrize(
    ("likelihood", "block"),
    [(Categorical(), 3), (Gaussian(), 1), (Bernoulli(), 1), (Heteroscedastic(), 1), (Custom(cubed), 12)],
)
def test_rows_of_positions_are_those_of_the_whole_hessian(x64, likelihood, block):
    """A pixel's outputs curve together, or each by itself: no matrix over all pixels is needed."""
    outputs = jax.random.normal(jax.random.key(0), (5, 4, 3) if block != 1 else (5, 3, 4))
    target = jnp.zeros((5, 4), int) if isinstance(likelihood, Categorical) else outputs[..., : 4 if block == 1 else 3]
    target = target[..., :2] if isinstance(likelihood, Heteroscedastic) else target
    sample, cotangents = loss_rows(likelihood, outputs, target, 0.0)
    assert cotangents.values.shape[1] == block
    rows = cotangents.written().reshape(len(sample), -1)
    found = np.stack([rows[sample == i].T @ rows[sample == i] for i in range(5)])
    np.testing.assert_allclose(found, dense_hessian(likelihood, outputs, target), atol=1e-12)


def test_without_curvature_there_are_no_rows():
    case = mlp()
    ignored = jnp.full(len(case.inputs), -1)
    rows = stream(case, Categorical(ignore_index=-1), ignored, 1e-3).matrix(2**30)
    assert rows.shape == (0, dense_ggn(case, "mse").shape[0])
