"""Searches for a prior precision against brute force."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_core.tuning import gradient_descent, grid_search, log_grid


def bowl(precisions):
    """Smallest at 10, in the middle of the default grid's logarithms."""
    return (np.log10(precisions) - 1) ** 2


@given(
    inner=st.lists(st.floats(-5, 5), min_size=1, max_size=20),
    ratio=st.floats(1.1, 10),
    lowest=st.floats(1e-6, 1e3),
)
def test_found_precision_is_the_brute_force_minimum(inner, ratio, lowest):
    losses = np.array([6.0, *inner, 6.0])  # high edges, so that no warning is due
    grid = lowest * ratio ** np.arange(len(losses))
    found = grid_search(lambda precisions: losses, grid)
    assert found.loss == losses.min()
    assert found.prior_precision == grid[losses.tolist().index(losses.min())]
    np.testing.assert_array_equal(found.precisions, grid)
    np.testing.assert_array_equal(found.losses, losses)


def test_losses_are_asked_for_once_on_the_sorted_grid():
    asked = []

    def losses(precisions):
        asked.append(precisions)
        return bowl(precisions)

    assert grid_search(losses, [100.0, 1.0, 10.0]).prior_precision == 10.0
    np.testing.assert_array_equal(asked, [[1.0, 10.0, 100.0]])


def test_default_grid_is_the_logarithmic_one():
    found = grid_search(bowl)
    np.testing.assert_array_equal(found.precisions, log_grid())
    np.testing.assert_allclose(found.prior_precision, 10, rtol=1e-12)
    np.testing.assert_allclose(np.diff(np.log(log_grid(2.0, 50.0, 7))), np.log(25) / 6, rtol=1e-12)


@pytest.mark.parametrize(
    ("grid", "best", "message"), [([20, 40, 80], 20.0, "edge.*Widen"), ([1, 2, 4], 4.0, "network's own")]
)
def test_minimum_at_an_edge_warns(grid, best, message):
    with pytest.warns(UserWarning, match=message):
        assert grid_search(bowl, grid).prior_precision == best


def test_grid_of_one_point_gives_that_point_without_a_warning():
    assert grid_search(bowl, 3.0).prior_precision == 3.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_losses_that_are_not_finite_never_win(bad):
    found = grid_search(lambda p: np.array([3.0, bad, 1.0, bad, 2.0]), [1, 2, 3, 4, 5])
    assert (found.prior_precision, found.loss) == (3.0, 1.0)
    with pytest.raises(ValueError, match="finite loss"):
        grid_search(lambda p: np.full(3, bad), [1, 2, 3])


@pytest.mark.parametrize("grid", [[], [1.0, 0.0], [-1.0, 1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_bad_grids_are_refused_before_any_work(grid):
    def never(precisions):
        raise AssertionError("asked for losses")

    with pytest.raises(ValueError, match="positive, finite"):
        grid_search(never, grid)


@pytest.mark.parametrize(("low", "high", "num"), [(0.0, 1.0, 3), (2.0, 1.0, 3), (1.0, float("inf"), 3), (1.0, 2.0, 1)])
def test_bad_grid_limits_are_refused(low, high, num):
    with pytest.raises(ValueError, match="0 < low < high"):
        log_grid(low, high, num)


@pytest.mark.mixed_dtypes  # optax mixes Python floats and an int32 count
@pytest.mark.parametrize("start", [1.0, [1.0, 300.0, 0.02]])
def test_descent_reaches_the_bottom_of_a_bowl(x64, start):
    bottom = jnp.array(7.0) if np.ndim(start) == 0 else jnp.array([0.5, 20.0, 3.0])
    found = gradient_descent(lambda p: (jnp.log(p / bottom) ** 2).sum(), start, steps=400)
    np.testing.assert_allclose(found.prior_precision, bottom, rtol=1e-2)
    assert isinstance(found.prior_precision, float) == (np.ndim(start) == 0)


@pytest.mark.mixed_dtypes  # optax mixes Python floats and an int32 count
def test_descent_returns_the_best_point_of_its_path(x64):
    def loss(p):
        return jnp.log(p) ** 2

    wild = optax.sgd(0.99)  # overshoots the bottom at every step
    found = gradient_descent(loss, 5.0, optimizer=wild, steps=9)
    np.testing.assert_allclose(found.precisions[0], 5.0, rtol=1e-12)
    assert found.precisions.shape == found.losses.shape == (10,)
    np.testing.assert_allclose(found.losses, np.log(found.precisions) ** 2, rtol=1e-9)
    assert found.loss == found.losses.min()
    assert found.prior_precision == found.precisions[found.losses.argmin()]
    # log p is multiplied by 1 - 2 * 0.99 each step
    np.testing.assert_allclose(np.log(found.precisions[1:] / 1) / np.log(found.precisions[:-1]), -0.98, rtol=1e-6)


@pytest.mark.mixed_dtypes  # optax mixes Python floats and an int32 count
@pytest.mark.parametrize("start", [0.0, -1.0, [1.0, 0.0], float("nan")])
def test_descent_refuses_to_start_at_what_is_no_precision(start):
    with pytest.raises(ValueError, match="cannot start"):
        gradient_descent(lambda p: jnp.sum(p), start)


@pytest.mark.mixed_dtypes  # optax mixes Python floats and an int32 count
def test_descent_refuses_a_start_without_a_loss():
    with pytest.raises(ValueError, match="loss is nan at the start"):
        gradient_descent(lambda p: p * jnp.nan, 1.0)
