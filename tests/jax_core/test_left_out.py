"""What a reduction leaves out is told by its trace, and warned of where it matters."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from jax_core.left_out import carried, left_out, warn_of_left_out
from jax_core.operators import BlockDiagonal, BlockLowRank, Diagonal, LowRank


def low_rank(*values):
    return LowRank(jnp.eye(4)[:, : len(values)], jnp.array(values), jnp.zeros(()))


def test_a_low_rank_leaves_out_the_trace_that_it_does_not_hold():
    assert left_out(low_rank(6.0, 3.0), 10.0) == pytest.approx(0.1)
    assert left_out(low_rank(6.0), None) is None
    assert left_out(low_rank(0.0), 0.0) == 0.0
    assert left_out(low_rank(6.0), 5.999999) == 0.0  # rounding


def test_what_has_a_diagonal_leaves_out_nothing_and_says_which_part_carries_it():
    blocks = BlockDiagonal((Diagonal(jnp.ones(4)),))
    assert left_out(blocks, None) == 0.0
    both = carried(BlockLowRank(blocks, jnp.eye(4)[:, :2], jnp.array([4.0, 2.0])), None)
    np.testing.assert_allclose([both["low rank"], both["blocks"]], [0.6, 0.4], rtol=1e-6)
    assert carried(blocks, None) == {"blocks": 1.0}
    assert carried(low_rank(6.0), 8.0) == {"low rank": 0.75}


def test_a_rank_that_is_too_small_is_named_with_the_remedy():
    with pytest.warns(UserWarning, match="Rank 1 leaves out 40% .*larger rank.*kron_lowrank"):
        warn_of_left_out(low_rank(6.0), 10.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_left_out(low_rank(6.0, 3.0), 10.0)
        warn_of_left_out(low_rank(6.0), None)
