"""Functions of a batch over a loader, with laplax as the judge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laplax.util import loader as laplax

from jax_core.tutorial_api import (
    execute_with_data_loader,
    input_target_split,
    reduce_add,
    reduce_concat,
    reduce_online_mean,
    reduce_sum,
    wrap_function_with_data_loader,
)

REDUCTIONS = {
    "sum": (reduce_sum, laplax.reduce_sum),
    "mean": (reduce_online_mean, laplax.reduce_online_mean),
    "add": (reduce_add, laplax.reduce_add),
    "concat": (reduce_concat, laplax.reduce_concat),
}


def batches(sizes=(4, 4, 3)):
    rng = np.random.default_rng(0)
    return [(rng.normal(size=(n, 5)).astype(np.float32), rng.normal(size=n).astype(np.float32)) for n in sizes]


def residuals(scale, data):
    errors = scale * data["input"].sum(-1) - data["target"]
    return {"error": errors, "square": errors**2}


@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize("name", ["sum", "mean", "concat"])
def test_joined_results_are_laplaxs(name, jit):
    ours, theirs = REDUCTIONS[name]
    found = wrap_function_with_data_loader(residuals, batches(), reduce=ours, jit=jit)(jnp.float32(2.0))
    expected = laplax.wrap_function_with_data_loader(residuals, batches(), reduce=theirs)(jnp.float32(2.0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_of_arrays_are_laplaxs(name):
    ours, theirs = REDUCTIONS[name]
    parts = [jnp.arange(float(n)).reshape(n, 1) for n in ((3, 3) if name == "add" else (2, 3, 4))]
    state = other = None
    for part in parts:
        found, state = ours(part, state)
        expected, other = theirs(part, other)
    np.testing.assert_allclose(found, expected)


def test_mean_weighs_samples_alike_whatever_batches_they_come_in():
    whole = execute_with_data_loader(residuals, batches((11,)), scale=jnp.float32(2.0))
    parts = execute_with_data_loader(residuals, batches((11,)) * 2, scale=jnp.float32(2.0), jit=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), whole, parts)
    assert whole["error"].shape == ()


def test_sum_without_the_axis_that_was_summed():
    np.testing.assert_array_equal(reduce_sum(jnp.ones((3, 2)), keepdims=False)[0], [3.0, 3.0])


def test_compiled_function_is_traced_once_for_each_shape():
    traces = []

    def traced(data):
        traces.append(data["input"].shape)
        return data["input"].sum()

    run = wrap_function_with_data_loader(traced, batches((4, 4, 4, 3)), reduce=reduce_add, jit=True)
    np.testing.assert_allclose(run(), run())
    assert traces == [(4, 5), (3, 5)]


def test_pairs_and_mappings_split_alike():
    assert input_target_split((1, 2)) == input_target_split({"input": 1, "target": 2}) == {"input": 1, "target": 2}


def test_empty_loader_is_refused():
    with pytest.raises(ValueError, match="loader is empty"):
        execute_with_data_loader(residuals, [], scale=1.0)
