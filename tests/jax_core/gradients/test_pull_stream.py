"""A pass over examples sees each of their rows once, however they are cut."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import pytest

from jax_core import LoaderPasses, as_likelihood
from jax_core.data.checkpoint import Checkpoint
from jax_core.gradients import pull_stream
from jax_core.gradients.cotangents import Cotangents
from jax_core.gradients.factored import Layout
from jax_core.gradients.jacobians import find_layout
from jax_core.gradients.pull_stream import Pool, PullStream
from jax_core.xla.compiled import as_jit_argument
from tests.cases import dense_ggn, mlp


@dataclass(frozen=True)
class Gram:
    layout: Layout

    def share(self, carry, extra, right, counted):
        return (carry[0], carry[1] + counted.sum()), None

    def add(self, carry, extra, shared, plain, left):
        return carry[0] + plain.T @ plain, carry[1]


def stream(case, cut, checkpoint=None, tolerance=0.0):
    target = case.targets("cross_entropy")
    batches = [(case.inputs[i : i + cut], target[i : i + cut]) for i in range(0, len(case.inputs), cut)]
    what = (as_jit_argument(case.model_fn), case.params, as_likelihood("cross_entropy"), LoaderPasses(batches))
    return PullStream(*what, tolerance=tolerance, checkpoint=checkpoint)


def fold(case, found):
    visit = Gram(find_layout(case.model_fn, case.params, case.inputs[0], lambda leaf, sides: False))
    return found.fold(visit, (jnp.zeros((visit.layout.size,) * 2), jnp.zeros((), int)))


@pytest.mark.parametrize("cut", [2, 4, 9])
@pytest.mark.parametrize("chunk", [1, 2, 128])
def test_rows_add_up_to_the_ggn_and_examples_count_once(x64, monkeypatch, cut, chunk):
    monkeypatch.setattr(pull_stream, "plan_chunk", lambda *_, **__: chunk)
    case = mlp()
    found = stream(case, cut)
    matrix, count = fold(case, found)
    np.testing.assert_allclose(matrix, dense_ggn(case, "cross_entropy"), atol=1e-10)
    assert int(count) == found.sums.samples == len(case.inputs)


def test_a_pass_that_was_cut_off_goes_on(x64, monkeypatch, tmp_path):
    monkeypatch.setattr(pull_stream, "plan_chunk", lambda *_, **__: 1)
    monkeypatch.setattr(pull_stream, "_POOL", 1)
    monkeypatch.setattr("jax_core.data.checkpoint._SECONDS", -1.0)
    monkeypatch.setattr("jax_core.data.checkpoint._SHARE", 0.0)
    case, calls = mlp(), []
    known = pull_stream._begin

    def stop(*args):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return known(*args)

    monkeypatch.setattr(pull_stream, "_begin", stop)
    with pytest.raises(KeyboardInterrupt):
        fold(case, stream(case, 2, Checkpoint(tmp_path, "one")))
    matrix, count = fold(case, stream(case, 2, Checkpoint(tmp_path, "one")))
    np.testing.assert_allclose(matrix, dense_ggn(case, "cross_entropy"), atol=1e-10)
    assert int(count) == len(case.inputs)
    assert len(calls) == 5 + len(case.inputs) - 4  # four were kept


def test_examples_with_about_as_many_rows_share_a_chunk():
    pool, inputs = Pool(), np.arange(6.0)[:, None]
    sample = np.array([0, 2, 2, 2, 4, 4])
    rows = Cotangents(np.zeros(6, int), np.arange(6.0)[:, None] + 1, (1,))
    pool.add(inputs[:3], 3, sample[:4], rows[:4])
    pool.add(inputs[3:], 3, sample[4:] - 3, rows[4:])
    chunks = [chunk._replace(cotangents=list(chunk.cotangents)) for chunk in pool.chunks(4)]
    assert [(c.counted, len(c.cotangents)) for c in chunks] == [(4, 3), (2, 0)]
    assert [float(x) for x in chunks[0].input[:, 0]] == [2, 4, 0, 1]
    np.testing.assert_array_equal(np.stack(chunks[0].cotangents)[..., 0], [[2, 5, 1, 0], [3, 6, 0, 0], [4, 0, 0, 0]])
    assert [float(x) for x in chunks[1].input[:, 0]] == [3, 5, 5, 5]
