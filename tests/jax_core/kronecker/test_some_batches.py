"""Some batches of a pass, and the proof that all of it was read."""

import numpy as np
import pytest

from jax_core import LoaderPasses
from jax_core.kronecker.some_batches import SomeBatches


@pytest.mark.parametrize("cache", ["memory", "none"])
@pytest.mark.parametrize(("step", "shown"), [(1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (3, [0, 3]), (9, [0])])
def test_one_batch_in_so_many_is_shown_and_all_are_read(cache, step, shown):
    whole = LoaderPasses([(np.full((2, 1), float(i)), np.zeros(2)) for i in range(5)], cache=cache)
    some = SomeBatches(whole, step)
    for _ in range(2):
        assert [int(batch.input[0, 0]) for batch in some] == shown
        assert [int(batch.input[0, 0]) for batch in some.with_progress("a bar")] == shown
    assert some.num_samples == 10 and some.fingerprint == whole.fingerprint
    assert some.mark(len(shown))[0] == 2 * (shown[-1] + 1)
    assert int(some.peek().input[0, 0]) == 0
    assert (some.cached, some.shows, some.budget) == (whole.cached, whole.shows, whole.budget)
