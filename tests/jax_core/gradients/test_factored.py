"""Every product with rows in factors equals that with the rows written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_core.gradients.factored import FactoredRows, Layout, Slot
from jax_core.operators import LowRank
from jax_core.operators.projection import combine

# leaves of 2, 4 x 3, 5 and 2 x 3 x 2 elements, in this order in the flattened parameters
LAYOUT = Layout(
    (Slot(0, 0, (2,)), Slot(2, 14, (5,))),
    (Slot(1, 2, (4, 3)), Slot(3, 19, (2, 3, 2), vectors=5)),
)
BATCH, OUTPUTS, VECTORS = 4, 3, 5


def normal(key, *shape):
    return jax.random.normal(jax.random.key(key), shape)


LAST_LAYER = Layout((Slot(0, 0, (3,)),), (Slot(1, 3, (3, 4)),))


@pytest.fixture(params=[LAYOUT, Layout(LAYOUT.plain[:1], ()), Layout((), (Slot(0, 0, (4, 3)),)), LAST_LAYER])
def rows(request, x64):
    """Rows of a mixed layout, of one without factors, of one with nothing else, and of a layer and its bias."""
    layout = request.param
    left = tuple(normal(i, BATCH, OUTPUTS, s.vectors, s.shape[0]) for i, s in enumerate(layout.factored))
    right = tuple(normal(9 + i, BATCH, s.vectors, s.size // s.shape[0]) for i, s in enumerate(layout.factored))
    return FactoredRows(normal(7, BATCH, OUTPUTS, layout.plain_size), left, right, layout)


def test_written_out_rows_hold_outer_products_in_their_leaves_place(x64):
    left, right = (normal(1, 1, 1, 1, 4), normal(2, 1, 1, 5, 2)), (normal(3, 1, 1, 3), normal(4, 1, 5, 6))
    dense = FactoredRows(normal(5, 1, 1, 7), left, right, LAYOUT).dense()[0, 0]
    np.testing.assert_allclose(dense[2:14].reshape(4, 3), np.outer(left[0], right[0]))
    np.testing.assert_allclose(dense[19:].reshape(2, 6), left[1][0, 0].T @ right[1][0], atol=1e-12)
    np.testing.assert_allclose(np.r_[dense[:2], dense[14:19]], normal(5, 7))


def test_split_and_join_undo_each_other():
    vectors = normal(0, VECTORS, LAYOUT.size)
    np.testing.assert_array_equal(LAYOUT.join(LAYOUT.split(vectors)), vectors)


def test_sizes_count_what_is_held_and_what_is_multiplied():
    assert (LAYOUT.plain_size, LAYOUT.size) == (7, 31)
    assert LAYOUT.row_size == 7 + 1 * 4 + 5 * 2
    assert LAYOUT.factored_size == 1 * 12 + 5 * 12


def test_products_with_vectors_are_the_dense_ones(rows):
    columns = normal(11, rows.layout.size, VECTORS)
    np.testing.assert_allclose(rows.times_rows(rows.layout.split(columns.T)), rows.dense() @ columns, atol=1e-12)


def test_adding_back_is_the_transpose(rows):
    weights, image = normal(12, BATCH, OUTPUTS, VECTORS), normal(13, VECTORS, rows.layout.size)
    found = rows.layout.join(rows.add_back(rows.layout.split(image), weights))
    np.testing.assert_allclose(found, image + jnp.einsum("bck,bcp->kp", weights, rows.dense()), atol=1e-12)


def test_gram_and_low_rank_quadratic_are_the_dense_ones(rows):
    dense = rows.dense()
    np.testing.assert_allclose(rows.gram(), dense @ jnp.swapaxes(dense, 1, 2), atol=1e-12)
    basis = jnp.linalg.qr(normal(14, rows.layout.size, 2))[0]
    operator = LowRank(basis, jnp.array([3.0, 0.5]), jnp.array(0.1))
    inner = rows.times_rows(rows.layout.split(basis.T))
    np.testing.assert_allclose(
        combine(operator.s, inner, operator.alpha * rows.gram()), operator.quadratic(dense), atol=1e-12
    )


def test_forms_are_the_dense_ones(rows):
    columns, values = normal(15, rows.layout.size, VECTORS), jnp.array([2.0, -1.0, 0.5, 3.0, 0.0])
    inner = rows.dense() @ columns
    expected = jnp.einsum("bck,k,bdk->bcd", inner, values, inner)
    np.testing.assert_allclose(rows.form(rows.layout.split(columns.T), values), expected, atol=1e-12)
    ones = rows.form(rows.layout.split(columns.T), jnp.array(2.0))
    np.testing.assert_allclose(ones, 2 * inner @ jnp.swapaxes(inner, 1, 2), atol=1e-12)


@pytest.mark.parametrize(("batch", "outputs"), [(0, 2), (4, 1), (4, 2), (3, 2), (6, 15), (2, 16)])
def test_gram_of_any_number_of_rows(x64, batch, outputs):
    layout = Layout(LAYOUT.plain, ())
    rows = FactoredRows(normal(7, batch, outputs, layout.plain_size), (), (), layout)
    np.testing.assert_allclose(rows.gram(), np.einsum("bcq,bdq->bcd", rows.plain, rows.plain), atol=1e-12)
