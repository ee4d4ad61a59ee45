"""Laws of pytrees seen as vectors, on trees of odd shapes, scalars, empty leaves and mixed dtypes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jax_core import (
    create_ggn_mv,
    create_posterior_fn,
    create_pytree_flattener,
    diagonal,
    get_size,
    linearized_predictive,
    to_dense,
    wrap_function,
)
from jax_core.data import trees
from tests.cases import quick_jit

# trees of several dtypes are what is tested here
pytestmark = pytest.mark.mixed_dtypes
SHAPES = ((), (0,), (1,), (3,), (2, 0), (2, 1, 2), (1, 1, 1), (0, 0))
FLOATS = (jnp.float64, jnp.float32, jnp.float16, jnp.bfloat16)
ANY = (*FLOATS, jnp.int32, jnp.uint8)
# of the coarsest dtype in a tree
TOLERANCE = {jnp.dtype(d): t for d, t in zip(FLOATS, (1e-10, 1e-4, 2e-2, 2e-1), strict=True)}


some, few = settings(max_examples=20), settings(max_examples=2)


def nested(leaves):
    """Dicts whose keys are out of order, lists, tuples and the absence of a tree, around the leaves."""
    return st.recursive(
        leaves | st.none(),
        lambda inner: st.one_of(
            st.dictionaries(st.sampled_from("zyxw"), inner, max_size=3),
            st.lists(inner, max_size=3),
            st.tuples(inner, inner),
        ),
        max_leaves=6,
    )


def kinds(dtypes):
    return nested(st.tuples(st.sampled_from(SHAPES), st.sampled_from(dtypes)).map(lambda kind: Kind(*kind)))


class Kind:
    """A leaf to be: hypothesis draws trees of these, which are made arrays under the mode of the test."""

    def __init__(self, shape, dtype):
        self.shape, self.dtype = shape, dtype

    def __repr__(self):
        return f"{jnp.dtype(self.dtype).name}{list(self.shape)}"


def fill(tree, seed=0):
    """Small integers, which every dtype holds exactly."""
    numbers = np.random.default_rng(seed)
    return jax.tree.map(lambda kind: jnp.asarray(numbers.integers(0, 9, kind.shape), kind.dtype), tree)


def has_weights(tree):
    return any(0 not in kind.shape for kind in jax.tree.leaves(tree))


def in_64_bits(test):
    """Hypothesis and fixtures of one function do not mix."""

    @functools.wraps(test)
    def run(*args, **drawn):
        with jax.enable_x64(True):
            test(*args, **drawn)

    return run


def assert_same(found, expected):
    """The same structure, shapes, dtypes and numbers."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_array_equal(np.asarray(a, np.float64), np.asarray(b, np.float64))


@some
@given(tree=kinds(ANY))
@in_64_bits
def test_unflatten_undoes_flatten_and_flatten_undoes_unflatten(tree):
    values = fill(tree)
    flatten, unflatten = create_pytree_flattener(values)
    flat = flatten(values)
    assert flat.shape == (get_size(values),)
    assert_same(unflatten(flat), values)
    np.testing.assert_array_equal(flatten(unflatten(2 * flat)), 2 * flat)


@some
@given(tree=kinds(ANY))
@in_64_bits
def test_flat_vector_holds_the_leaves_in_order_in_their_common_dtype(tree):
    values = fill(tree)
    flat = create_pytree_flattener(values)[0](values)
    leaves = jax.tree.leaves(values)
    assert flat.dtype == (jnp.result_type(*leaves) if leaves else jnp.result_type(float))
    expected = [number for leaf in leaves for number in np.asarray(leaf, np.float64).reshape(-1)]
    np.testing.assert_array_equal(np.asarray(flat, np.float64), expected)


@some
@given(tree=kinds(ANY))
@in_64_bits
def test_shape_structs_lay_out_like_the_arrays(tree):
    values = fill(tree)
    flatten, unflatten = create_pytree_flattener(jax.eval_shape(lambda: values))
    assert get_size(jax.eval_shape(lambda: values)) == get_size(values)
    assert_same(unflatten(flatten(values)), values)


@some
@given(tree=kinds(ANY), extra=st.integers(1, 3))
@in_64_bits
def test_vectors_of_another_length_are_refused(tree, extra):
    values = fill(tree)
    size = get_size(values)
    unflatten = create_pytree_flattener(values)[1]
    for shape in ((size + extra,), (max(0, size - extra),) if size else (1,), (1, size)):
        with pytest.raises(ValueError, match=f"tree of {size} scalars"):
            unflatten(jnp.zeros(shape))


def test_numbers_of_python_are_leaves():
    flatten, unflatten = create_pytree_flattener({"b": 2.5, "a": [1, jnp.ones(2)]})
    np.testing.assert_array_equal(flatten({"b": 2.5, "a": [1, jnp.ones(2)]}), [1, 1, 1, 2.5])
    assert_same(unflatten(jnp.arange(4.0)), {"b": jnp.array(3.0), "a": [jnp.array(0), jnp.array([1.0, 2.0])]})


@some
@given(tree=kinds(FLOATS), factor=st.integers(-3, 3))
@in_64_bits
def test_flattening_is_linear_and_leaves_keep_their_dtypes(tree, factor):
    left, right = fill(tree, 1), fill(tree, 2)
    flatten = create_pytree_flattener(left)[0]
    scaled = trees.scale(jnp.asarray(factor, float), trees.add(left, right))
    assert jax.tree.map(lambda leaf: leaf.dtype, scaled) == jax.tree.map(lambda leaf: leaf.dtype, left)
    np.testing.assert_array_equal(flatten(scaled), factor * (flatten(left) + flatten(right)))
    assert_same(trees.zeros_like(left), trees.scale(0.0, left))


@some
@given(tree=kinds(FLOATS), data=st.data())
@in_64_bits
def test_leaves_that_are_not_finite_are_named(tree, data):
    values = fill(tree)
    leaves, structure = jax.tree.flatten(values)
    names = list(trees.leaf_names(values))
    assert len(set(names)) == len(names) == len(leaves)
    assert list(trees.non_finite_leaves(values)) == []
    bad = data.draw(st.sets(st.sampled_from(range(len(leaves)))) if leaves else st.just(set()))
    spoilt = [
        leaf.at[(0,) * leaf.ndim].set(jnp.nan) if i in bad and leaf.size else leaf for i, leaf in enumerate(leaves)
    ]
    expected = [names[i] for i in sorted(bad) if leaves[i].size]
    assert list(trees.non_finite_leaves(jax.tree.unflatten(structure, spoilt))) == expected


@some
@given(tree=kinds(FLOATS))
@in_64_bits
def test_wrapping_a_function_of_trees_makes_it_one_of_vectors(tree):
    values = fill(tree)
    flatten, unflatten = create_pytree_flattener(values)
    wrapped = wrap_function(lambda t, by: trees.scale(by, t), unflatten, flatten)
    np.testing.assert_array_equal(wrapped(flatten(values), 3.0), 3 * flatten(values))


def model(x, params):
    """Three outputs, linear in the hyperbolic tangents of the parameters with a matrix that depends on the input."""
    features = jnp.concatenate([jnp.zeros(1), *(jnp.tanh(leaf).reshape(-1) for leaf in jax.tree.leaves(params))])
    return jnp.cos(jnp.outer(jnp.arange(1.0, 4.0), jnp.arange(features.size)) + x) @ features


def problem(tree):
    """Parameters, data, the rows of the Jacobian ``(B, C, P)`` and the tolerance of the coarsest dtype."""
    params = jax.tree.map(lambda leaf: leaf / 8 - leaf.dtype.type(0.5), fill(tree))
    flat = np.asarray(create_pytree_flattener(params)[0](params), np.float64)
    data = {"input": jnp.arange(4.0), "target": jnp.array([0, 2, 1, 1])}
    weights = np.cos(np.outer(np.arange(1.0, 4.0), np.arange(1, flat.size + 1)) + np.arange(4.0)[:, None, None])
    tolerance = max((TOLERANCE[jnp.dtype(leaf.dtype)] for leaf in jax.tree.leaves(params)), default=1e-10)
    return params, data, weights * (1 - np.tanh(flat) ** 2), tolerance


def shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


EMPTY = {"a": Kind((2, 0), jnp.float64), "b": [None, Kind((0,), jnp.float32)]}
MIXED = {"z": Kind((), jnp.float64), "a": (Kind((2, 0), jnp.float16), Kind((2, 1, 2), jnp.float32)), "m": None}


@few
@given(tree=kinds(FLOATS).filter(jax.tree.leaves))
@example(tree=EMPTY)
@example(tree=MIXED)
@in_64_bits
def test_ggn_product_matrix_and_diagonal_are_those_of_the_vector(tree):
    params, data, rows, tolerance = problem(tree)
    p = np.asarray(jax.nn.softmax(jax.vmap(lambda x: model(x, params))(data["input"])))
    hessians = p[:, :, None] * np.eye(3) - p[:, :, None] * p[:, None, :]
    expected = np.einsum("bcp,bcd,bdq->pq", rows, hessians, rows)
    mv = create_ggn_mv(model, params, data, "cross_entropy")
    vector = trees.add(params, params)
    product, matrix, entries = quick_jit(lambda v: (mv(v), to_dense(mv, params), diagonal(mv, params)))(vector)
    assert shapes(product) == shapes(params)
    flatten = create_pytree_flattener(params)[0]
    close = {"rtol": tolerance, "atol": tolerance * max(1.0, np.abs(expected).max(initial=0.0))}
    np.testing.assert_allclose(flatten(product), expected @ np.asarray(flatten(vector), np.float64), **close)
    np.testing.assert_allclose(matrix, expected, **close)
    np.testing.assert_allclose(entries, np.diagonal(expected), **close)


@few
@given(tree=kinds((jnp.float64, jnp.float32)).filter(has_weights), structure=st.sampled_from(["full", "diagonal"]))
@example(tree=MIXED, structure="full")
@in_64_bits
def test_posterior_and_its_predictive_are_those_of_the_vector(tree, structure):
    params, data, rows, tolerance = problem(tree)
    size = get_size(params)
    root = np.random.default_rng(0).normal(size=(size, size))
    curvature = root @ root.T if structure == "full" else np.diag(np.arange(1.0, size + 1))
    flatten, unflatten = create_pytree_flattener(params)
    prior = jax.tree.map(lambda leaf: 2.0 + jnp.arange(leaf.size, dtype=leaf.dtype).reshape(leaf.shape), params)
    posterior_fn = create_posterior_fn(structure, mv=lambda v: unflatten(curvature @ flatten(v)), layout=params)
    posterior = posterior_fn({"prior_prec": prior})
    precision = curvature + np.diag(np.asarray(flatten(prior), np.float64))
    covariance, close = np.linalg.inv(precision), {"rtol": tolerance, "atol": tolerance}
    vector = np.asarray(flatten(params), np.float64)

    @quick_jit
    def products(posterior):
        scale = jax.vmap(posterior.scale_flat, out_axes=1)(jnp.eye(size))
        draws = posterior.sample(jax.random.key(0), 2)
        return posterior.cov_mv(params), posterior.precision_mv(params), scale @ scale.T, draws

    *found, square, draws = products(posterior)
    for product, expected in zip(found, (covariance @ vector, precision @ vector), strict=True):
        assert shapes(product) == shapes(params)
        np.testing.assert_allclose(flatten(product), expected, **close)
    np.testing.assert_allclose(square, covariance, **close)
    assert shapes(draws) == jax.tree.map(lambda leaf: ((2, *leaf.shape), leaf.dtype), params)
    outputs = linearized_predictive(model, posterior)(data["input"])
    np.testing.assert_allclose(outputs.mean, jax.vmap(lambda x: model(x, params))(data["input"]), **close)
    np.testing.assert_allclose(outputs.covariance, rows @ covariance @ np.swapaxes(rows, 1, 2), **close)
