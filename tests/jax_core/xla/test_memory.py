"""Work that runs out of memory begins anew with half as many samples, and ends as if it had not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_core import FitOptions, LoaderPasses, as_likelihood, fit_curvature
from jax_core.gradients import walk
from jax_core.posterior import Posterior
from jax_core.predictive import linearized_predictive
from jax_core.xla.compiled import as_jit_argument
from jax_core.xla.memory import half_after
from tests.cases import _mlp, mlp

EXHAUSTED = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8 bytes.")
MODEL = as_jit_argument(_mlp)


def fit(passes, structure):
    how = FitOptions(structure=structure, rank=12, progress=False, tolerance=0.0)
    return fit_curvature(
        MODEL, mlp().params, as_likelihood("cross_entropy"), passes, how, key=jax.random.key(0), num_total_samples=18
    )


class Exhausting(LoaderPasses):
    """Runs out of memory on what works with more samples at once than there is room for, in its second batch."""

    room: int

    def _read(self):
        for number, batch in enumerate(super()._read()):
            yield batch
            if number == 0 and self.room < 6:
                self.room *= 2
                raise EXHAUSTED


def passes(kind=LoaderPasses, **options):
    data = mlp().data("cross_entropy")
    return kind([jax.tree.map(lambda leaf, i=i: leaf[i : i + 6], data) for i in (0, 6)], **options)


@pytest.mark.parametrize("structure", ["full", "diag", "lowrank", "kron", "kron_lowrank"])
@pytest.mark.parametrize("cache", ["memory", "none"])
def test_a_fit_begins_anew_with_halves_and_is_the_same(x64, structure, cache):
    exhausting = passes(Exhausting, cache=cache)
    exhausting.room = 3
    with pytest.warns(UserWarning, match=r"Memory ran out with 6 samples.*the fit begins anew with 3"):
        found = fit(exhausting, structure)
    wanted = fit(passes(), structure)
    rows = jax.random.normal(jax.random.key(1), (found.curvature.size,))
    np.testing.assert_allclose(found.curvature.mv(rows), wanted.curvature.mv(rows), rtol=1e-6, atol=1e-10)
    np.testing.assert_allclose(found.nll, wanted.nll)
    assert (found.num_samples, found.num_total_samples) == (9, 18)


def test_a_prediction_goes_on_with_smaller_pieces_and_is_the_same(x64, monkeypatch):
    case, inputs = mlp(), jnp.tile(mlp().inputs, (8, 1))
    predict = linearized_predictive(
        MODEL, Posterior.create(case.params, fit(passes(), "full").curvature, jnp.array(1.0))
    )
    wanted, evaluated = predict(inputs), walk._evaluated

    def exhausting(evaluate, inputs, total, chunk, piece, **how):
        if chunk > 8:
            raise EXHAUSTED
        return evaluated(evaluate, inputs, total, chunk, piece, **how)

    monkeypatch.setattr(walk, "_evaluated", exhausting)
    with pytest.warns(UserWarning, match="the prediction begins anew"):
        found = predict(inputs)
    np.testing.assert_allclose(found.covariance, wanted.covariance, atol=1e-12)


@pytest.mark.parametrize("size", [2, 3, 100])
def test_half_of_the_samples_is_at_least_one_and_covers_them_in_two(size):
    with pytest.warns(UserWarning, match="Memory ran out"):
        half = half_after(EXHAUSTED, size, "it")
    assert 1 <= half < size <= 2 * half


@pytest.mark.parametrize(("error", "size"), [(EXHAUSTED, 1), (jax.errors.JaxRuntimeError("INTERNAL: other"), 8)])
def test_other_errors_and_single_samples_stay_errors(error, size):
    with pytest.raises(jax.errors.JaxRuntimeError) as stop:
        half_after(error, size, "it")
    assert stop.value is error
