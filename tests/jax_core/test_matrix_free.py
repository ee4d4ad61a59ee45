"""Matrices, diagonals and blocks from products against the matrix itself, with a loader and without."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_core import DataLoaderMV, create_ggn_mv_without_data
from jax_core.data.trees import flattener, get_size
from jax_core.matrix_free import block_product, diagonal, estimate_diagonal, flat_product, to_dense
from tests.cases import cnn, dense_ggn, mlp

SHAPES = st.lists(st.sampled_from([(), (0,), (1,), (3,), (2, 0), (2, 2), (1, 3, 1)]), min_size=1, max_size=4)


def matrix(size, seed=0):
    """Not symmetric, so that rows and columns cannot be mistaken for each other."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=(size, size)))


def tree_of(shapes, dtypes=(jnp.float64,)):
    leaves = [jnp.ones(shape, dtypes[i % len(dtypes)]) for i, shape in enumerate(shapes)]
    return {"a": leaves[:1], "b": tuple(leaves[1:]), "c": None}


def product_of(dense, layout):
    flatten, unflatten = flattener(layout)
    return lambda tree: unflatten(dense @ flatten(tree))


@functools.cache
def wide(case):
    """The case and its dense GGN, made once: programs are known by the model's identity."""
    with jax.enable_x64(True):
        made = case()
        return made, dense_ggn(made, "mse")


def over_loader(case, size=4):
    case, expected = wide(case)
    data = case.data("mse")
    batches = [jax.tree.map(lambda leaf, i=i: leaf[i : i + size], data) for i in range(0, len(case.inputs), size)]
    mv = create_ggn_mv_without_data(case.model_fn, case.params, "mse", 1.0)
    return case, DataLoaderMV(mv, batches), expected


@settings(max_examples=6)
@given(shapes=SHAPES, block_size=st.sampled_from([1, 3, 32]))
def test_dense_diagonal_and_blocks_of_any_pytree_are_the_matrix(shapes, block_size):
    with jax.enable_x64(True):
        layout = tree_of(shapes)
        dense = matrix(get_size(layout))
        mv = product_of(dense, layout)
        np.testing.assert_allclose(to_dense(mv, layout, block_size=block_size), dense, atol=1e-14)
        found = diagonal(mv, layout, block_size=block_size)
        np.testing.assert_allclose(found.reshape(-1), jnp.diagonal(dense), atol=1e-14)
        size, block = block_product(mv, layout)
        assert size == len(dense)
        np.testing.assert_allclose(block(2 * jnp.eye(size)[:2]), 2 * dense.T[:2], atol=1e-13)


@pytest.mark.mixed_dtypes  # so that the narrowest decides
@settings(max_examples=4)
@given(shapes=SHAPES, dtypes=st.permutations([jnp.float64, jnp.float32, jnp.float16]))
def test_mixed_dtypes_flatten_to_the_widest_and_lose_no_more_than_the_narrowest(shapes, dtypes):
    with jax.enable_x64(True):
        layout = tree_of(shapes, dtypes)
        dense = matrix(get_size(layout))
        found = to_dense(product_of(dense, layout), layout)
        assert found.dtype == jnp.result_type(*jax.tree.leaves(layout))
        np.testing.assert_allclose(found, dense, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("layout", [0, {"a": np.zeros((2, 0))}])
def test_diagonal_of_nothing_is_empty(layout):
    assert diagonal(lambda v: v, layout).shape == (0,)


@pytest.mark.parametrize("size", [1, 5, 33])
def test_layout_may_be_the_dimension(x64, size):
    dense = matrix(size)
    np.testing.assert_allclose(to_dense(lambda v: dense @ v, size), dense, atol=1e-14)
    np.testing.assert_allclose(diagonal(lambda v: dense @ v, size), jnp.diagonal(dense), atol=1e-14)
    assert block_product(lambda v: dense @ v, size)[0] == flat_product(lambda v: dense @ v, size)[0] == size


def test_diagonal_of_a_matrix_is_its_own(x64):
    np.testing.assert_array_equal(diagonal(np.arange(9.0).reshape(3, 3)), [0, 4, 8])


@pytest.mark.parametrize("function", [to_dense, diagonal])
def test_missing_layout_is_named(function):
    with pytest.raises(TypeError, match="Give layout"):
        function(lambda v: v)


@pytest.mark.parametrize("case", [mlp, cnn])
def test_sums_over_a_loader_are_the_dense_ggn(x64, case):
    case, mv, expected = over_loader(case)
    np.testing.assert_allclose(to_dense(mv, case.params), expected, atol=1e-10)
    np.testing.assert_allclose(diagonal(mv, case.params), jnp.diagonal(expected), atol=1e-10)


def test_blocks_over_a_loader_are_its_columns_in_one_pass(x64):
    case, mv, expected = over_loader(mlp)
    reads = []
    mv._passes._check = lambda number, batch: reads.append(number)  # called in the first pass alone
    size, block = block_product(mv, case.params)
    np.testing.assert_allclose(block(jnp.eye(size)[:7]), expected[:7], atol=1e-11)
    assert reads == [0, 1, 2]
    np.testing.assert_allclose(block(jnp.eye(size)), expected, atol=1e-11)


def test_estimate_is_unbiased_within_its_standard_error(x64):
    root = jnp.asarray(np.random.default_rng(0).normal(size=(200, 50)))
    dense = root @ root.T
    for seed in range(3):
        estimate = estimate_diagonal(lambda v: dense @ v, 200, key=jax.random.key(seed), num_probes=64, block_size=64)
        errors = (estimate.diagonal - jnp.diagonal(dense)) / estimate.standard_error
        assert (jnp.abs(errors) < 4).mean() > 0.98
        # neither too wide: standardised errors have the spread of a standard normal, 200 of them to about 5 %
        assert 0.8 < errors.std() < 1.2


def test_error_is_that_of_the_entries_off_the_diagonal(x64):
    dense = matrix(6)
    estimate = estimate_diagonal(lambda v: dense @ v, 6, key=jax.random.key(0), num_probes=4000, block_size=4000)
    # the variance of one probe is the sum of squares off the diagonal
    error = jnp.sqrt(((dense**2).sum(1) - jnp.diagonal(dense) ** 2) / 4000)
    np.testing.assert_allclose(estimate.standard_error, error, rtol=0.1)
    np.testing.assert_allclose((estimate.diagonal - jnp.diagonal(dense)) / error, 0, atol=4)


def test_standard_error_falls_with_the_root_of_the_probes(x64):
    dense = matrix(40)

    def error(probes):
        estimate = estimate_diagonal(
            lambda v: dense @ v, 40, key=jax.random.key(0), num_probes=probes, block_size=probes
        )
        return float(estimate.standard_error.mean()), float(jnp.abs(estimate.diagonal - jnp.diagonal(dense)).mean())

    (few, off), (many, closer) = error(20), error(2000)
    np.testing.assert_allclose(few / many, 10, rtol=0.1)
    assert closer < off / 4


def test_estimate_of_a_diagonal_matrix_is_exact(x64):
    entries = jnp.linspace(-1, 3, 9)
    estimate = estimate_diagonal(lambda v: entries * v, 9, key=jax.random.key(0), num_probes=2)
    np.testing.assert_allclose(estimate.diagonal, entries, atol=1e-15)
    np.testing.assert_allclose(estimate.standard_error, 0, atol=1e-15)


@pytest.mark.parametrize("block_size", [3, 64])
def test_estimate_does_not_depend_on_the_block_size(x64, block_size):
    dense = matrix(8)
    options = {"key": jax.random.key(0), "num_probes": 10}
    found = estimate_diagonal(lambda v: dense @ v, 8, block_size=block_size, **options)
    whole = estimate_diagonal(lambda v: dense @ v, 8, block_size=10, **options)
    np.testing.assert_allclose(found.diagonal, whole.diagonal, atol=1e-13)
    np.testing.assert_allclose(found.standard_error, whole.standard_error, atol=1e-13)


def test_estimate_over_a_loader_is_that_over_one_batch(x64):
    case, mv, expected = over_loader(mlp)
    options = {"key": jax.random.key(0), "num_probes": 24}
    found = estimate_diagonal(mv, case.params, **options)
    alone = estimate_diagonal(lambda v: expected @ v, get_size(case.params), **options)
    np.testing.assert_allclose(found.diagonal, alone.diagonal, atol=1e-10)
    np.testing.assert_allclose(found.standard_error, alone.standard_error, atol=1e-10)
    errors = (found.diagonal - jnp.diagonal(expected)) / found.standard_error
    assert (jnp.abs(errors) < 4).mean() > 0.9


@pytest.mark.parametrize("probes", [1, 0])
def test_fewer_than_two_probes_are_refused(probes):
    with pytest.raises(ValueError, match=f"num_probes={probes}"):
        estimate_diagonal(lambda v: v, 3, key=jax.random.key(0), num_probes=probes)
