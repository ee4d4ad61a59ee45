"""Every curvature product against curvlinops: its operators, and the dense matrices it is itself tested with.

The models are torch modules carried over by ``bridge.trace``, so both libraries see one function. Three conventions
differ. Torch's ``MSELoss`` has no factor of one half, so its gradients and Hessians are twice ours. Under
``reduction="mean"`` torch divides by the samples, and for ``MSELoss`` and ``BCEWithLogitsLoss`` by the outputs too;
ours is a sum with a ``factor``. And curvlinops counts that division once in an empirical Fisher, not twice.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from curvlinops import EFLinearOperator, GGNLinearOperator, HessianLinearOperator
from curvlinops.examples.functorch import functorch_empirical_fisher, functorch_ggn, functorch_hessian

from jax_core import (
    create_empirical_fisher_mv,
    create_ggn_mv,
    create_hessian_mv,
    create_mc_fisher_mv,
    create_mc_fisher_mv_without_data,
)
from jax_core.data.trees import flattener
from jax_core.likelihoods import Likelihood, as_likelihood
from tests.cases import LOSSES, quick_jit
from tests.jax_core.oracles import MODELS, OUTPUTS, SAMPLES, Twin, torch_loss, twin

pytestmark = pytest.mark.in_turns

CURVATURES = {
    "ggn": (create_ggn_mv, GGNLinearOperator, functorch_ggn),
    "hessian": (create_hessian_mv, HessianLinearOperator, functorch_hessian),
    "empirical_fisher": (create_empirical_fisher_mv, EFLinearOperator, functorch_empirical_fisher),
}


def torchs_factor(loss: str, curvature: str, reduction: str) -> float:
    """Torch's curvature in units of ours."""
    halves = {"ggn": 2.0, "hessian": 2.0, "empirical_fisher": 4.0}[curvature] if loss == "mse" else 1.0
    terms = SAMPLES * (1 if loss == "cross_entropy" else OUTPUTS)
    return halves / terms if reduction == "mean" else halves


def dense(operator, twin: Twin) -> np.ndarray:
    return twin.sort(operator @ torch.eye(len(twin.order), dtype=torch.float64))


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", MODELS)
def test_every_product_is_curvlinops_under_either_reduction(x64, name, loss, curvature):
    create, operator, reference = CURVATURES[curvature]
    carried = twin(name)

    @quick_jit
    def ours(factor, data):
        samples = {"num_curv_samples": 1, "num_total_samples": 1}
        return factor * carried.dense(create(carried.model_fn, carried.params, data, loss, **samples))

    for reduction in ("sum", "mean"):
        what = carried.model, torch_loss(loss, reduction), list(carried.model.parameters()), carried.batches(loss)
        found = ours(torchs_factor(loss, curvature, reduction), carried.data(loss))
        for expected in (dense(operator(*what, check_deterministic=False), carried), carried.sort(reference(*what))):
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11)


@dataclasses.dataclass(frozen=True)
class Recording:
    """A likelihood that keeps what it draws."""

    likelihood: Likelihood
    draws: list

    def nll(self, outputs, target):
        return self.likelihood.nll(outputs, target)

    def hessian_mv(self, outputs, target, vector):
        return self.likelihood.hessian_mv(outputs, target, vector)

    def sample(self, key, outputs):
        target = self.likelihood.sample(key, outputs)
        # callbacks run in a thread without 64-bit types: draw what 32 bits can hold
        narrow = jnp.float32 if jnp.issubdtype(target.dtype, jnp.floating) else jnp.int32
        target = target.astype(narrow).astype(target.dtype)
        jax.debug.callback(lambda drawn: self.draws.append(np.array(drawn)), target)
        return target


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", MODELS)
def test_monte_carlo_fisher_is_the_mean_of_curvlinops_empirical_fishers_at_the_same_draws(x64, name, loss):
    """Two random number generators agree in expectation alone, but given the draws nothing is left to chance."""
    carried, draws = twin(name), []
    flatten, unflatten = flattener(carried.params)
    vector = np.random.default_rng(0).normal(size=len(carried.order))
    recording = Recording(as_likelihood(loss), draws)
    options = {"key": jax.random.key(3), "num_samples": 3}
    mv = create_mc_fisher_mv(carried.model_fn, carried.params, carried.data(loss), recording, **options)
    found = quick_jit(lambda v: flatten(mv(unflatten(v))))(jnp.asarray(vector))
    jax.effects_barrier()
    assert len(draws) == 3
    assert not np.array_equal(draws[0], draws[1])
    parameters, scale = list(carried.model.parameters()), torchs_factor(loss, "empirical_fisher", "sum")
    fishers = [
        dense(
            EFLinearOperator(
                carried.model,
                torch_loss(loss),
                parameters,
                [(carried.inputs, torch.as_tensor(drawn).to(carried.targets(loss).dtype))],
                check_deterministic=False,
            ),
            carried,
        )
        for drawn in draws
    ]
    np.testing.assert_allclose(scale * found, np.mean(fishers, 0) @ vector, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("loss", LOSSES)
def test_monte_carlo_fisher_is_curvlinops_ggn_in_expectation(x64, loss):
    """The mean over independent keys lies within its own standard error of the GGN, in every entry."""
    carried, keys, draws = twin("mlp"), 60, 40
    flatten, unflatten = flattener(carried.params)
    data, vector = carried.data(loss), np.random.default_rng(0).normal(size=len(carried.order))

    @quick_jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def products(key, vec):
        mv = create_mc_fisher_mv_without_data(carried.model_fn, carried.params, loss, key=key, num_samples=draws)
        return flatten(mv(unflatten(vec), data))

    found = np.array(products(jax.random.split(jax.random.key(0), keys), jnp.asarray(vector)))
    what = carried.model, torch_loss(loss), list(carried.model.parameters()), carried.batches(loss)
    ggn = dense(GGNLinearOperator(*what, check_deterministic=False), carried)
    expected = ggn @ vector / torchs_factor(loss, "ggn", "sum")
    error = found.std(0, ddof=1) / keys**0.5
    assert (np.abs(found.mean(0) - expected) < 4.5 * error + 1e-9).all()
    assert np.linalg.norm(error) < 0.1 * np.linalg.norm(expected)  # or the law above would hold for anything
