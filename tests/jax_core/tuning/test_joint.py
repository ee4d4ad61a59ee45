"""Prior precision and logit temperature together, against brute force in numpy and scipy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given
from hypothesis import strategies as st
from jax.tree_util import Partial
from scipy.special import log_expit, log_softmax, logsumexp

from jax_core.data.batches import Batch
from jax_core.operators import Dense, Diagonal, LowRank
from jax_core.predictive import mean_field_2, probit
from jax_core.tuning.collect import held_out_search
from jax_core.tuning.families import ClassFamily, LabelFamily
from jax_core.tuning.joint import Table, fit_temperature, most_uncertain, most_uncertain_within
from tests.cases import dense_ggn, dense_jacobian, mlp

PRECISIONS = np.array([0.03, 0.5, 4.0, 60.0])
TEMPERATURES = np.array([0.2, 0.7, 1.0, 3.0])


@functools.cache
def wide():
    """The case, made once: programs are known by the model's identity."""
    with jax.enable_x64(True):
        return mlp()


def curvature(case, name):
    matrix = dense_ggn(case, "cross_entropy")
    values, vectors = jnp.linalg.eigh(matrix)
    if name == "lowrank":
        return LowRank(vectors[:, -5:], values[-5:], jnp.zeros(()))
    return Dense(jnp.maximum(values, 0), vectors) if name == "dense" else Diagonal(jnp.diagonal(matrix))


def matrix(operator):
    return np.stack([np.asarray(operator.mv(e)) for e in jnp.eye(operator.size)])


def outputs(case):
    return np.asarray(jax.vmap(lambda x: case.model_fn(x, case.params))(case.inputs))


def dense_log_probabilities(mean, covariance, temperature):
    """Mean field of order 2, a pair of classes at a time."""
    mean, covariance = mean / temperature, covariance / temperature**2
    found = np.zeros(len(mean))
    for c in range(len(mean)):
        terms = []
        for k in range(len(mean)):
            spread = covariance[c, c] + covariance[k, k] - 2 * covariance[c, k]
            terms.append((mean[k] - mean[c]) / np.sqrt(1 + np.pi * spread / 8))
        found[c] = -logsumexp(terms)
    return log_softmax(found)


def brute_force(case, operator, targets):
    rows, mean = np.asarray(dense_jacobian(case)), outputs(case)
    table = np.zeros((len(targets), len(PRECISIONS), len(TEMPERATURES)))
    for t, precision in enumerate(PRECISIONS):
        inverse = np.linalg.inv(matrix(operator) + precision * np.eye(operator.size))
        for k, temperature in enumerate(TEMPERATURES):
            for i, target in enumerate(targets):
                log_p = dense_log_probabilities(mean[i], rows[i] @ inverse @ rows[i].T, temperature)
                table[i, t, k] = -log_p[target]
    return table


@pytest.mark.parametrize(("structure", "size"), [("dense", 4), ("lowrank", 3), ("diagonal", 20)])
def test_the_joint_optimum_is_that_of_dense_brute_force(x64, structure, size):
    case = wide()
    targets, operator = np.asarray(case.targets("cross_entropy")), curvature(case, structure)
    batches = [Batch(case.inputs[i : i + size], targets[i : i + size]) for i in range(0, len(targets), size)]
    found = held_out_search(
        case.model_fn,
        case.params,
        operator,
        batches,
        ClassFamily(Partial(mean_field_2)),
        together=3,
        positions=1,
        precisions=PRECISIONS,
        temperatures=TEMPERATURES,
    )
    expected = brute_force(case, operator, targets)
    np.testing.assert_allclose(found.table.losses, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(found.table.counts, 1)
    np.testing.assert_allclose(found.network, -log_softmax(outputs(case), -1)[np.arange(len(targets)), targets])
    never = np.full(len(targets), 1e3)  # temperature scaling that is out of the way
    choice = most_uncertain(found.table, never, PRECISIONS, TEMPERATURES, 1.0, z=0.0)
    row, column = np.unravel_index(expected.mean(0).argmin(), (4, 4))
    assert (choice.precision, choice.temperature) == (PRECISIONS[row], TEMPERATURES[column])
    np.testing.assert_allclose(choice.loss, expected.mean(0).min(), rtol=1e-9)


@pytest.mark.parametrize("scale", [0.3, 1.0, 6.0])
@pytest.mark.parametrize("kind", ["classes", "probabilities", "labels"])
def test_the_limit_without_uncertainty_is_scipys_temperature_scaling(x64, scale, kind):
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(300, 1 if kind == "labels" else 4))
    noisy = logits + rng.gumbel(size=logits.shape)
    if kind == "labels":
        target = (noisy > rng.gumbel(size=logits.shape)).astype(float)
        family = LabelFamily()
    else:
        target = noisy.argmax(-1) if kind == "classes" else np.eye(4)[noisy.argmax(-1)] * 0.9 + 0.025
        family = ClassFamily(Partial(probit))

    def loss(log_temperature):
        z = scale * logits / np.exp(log_temperature)
        if kind == "labels":
            return -(target * log_expit(z) + (1 - target) * log_expit(-z)).sum()
        log_p = log_softmax(z, -1)
        return -(log_p[np.arange(300), target] if kind == "classes" else target * log_p).sum()

    expected = np.exp(scipy.optimize.minimize_scalar(loss, bounds=(-4, 4), method="bounded").x)
    found = fit_temperature(family, jnp.asarray(scale * logits), jnp.asarray(target))
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def tables():
    def made(n, seed):
        rng = np.random.default_rng(seed)
        losses = rng.exponential(size=(n, 1, 1)) + 0.5 * rng.normal(size=(n, 4, 4)) + rng.normal(size=(4, 4))
        return Table(losses, rng.integers(1, 3, n).astype(float)), rng.exponential(size=n)

    return st.builds(made, st.integers(1, 20), st.integers(0, 10**6))


@given(tables(), st.sampled_from([0.0, 1.0, 3.0]))
def test_the_choice_is_never_worse_than_temperature_scaling(drawn, z):
    table, scaled = drawn
    choice = most_uncertain(table, scaled, PRECISIONS, TEMPERATURES, 1.3, z=z)
    assert choice.loss <= scaled.sum() / table.counts.sum() + 1e-12
    assert choice.best <= choice.loss
    if np.isinf(choice.precision):
        assert choice.temperature == 1.3
    else:
        where = (slice(None), choice.precision == PRECISIONS, choice.temperature == TEMPERATURES)
        np.testing.assert_allclose(table.losses[where].sum() / table.counts.sum(), choice.loss)


@given(tables())
def test_a_wider_tolerance_never_leaves_less_uncertainty(drawn):
    table, scaled = drawn
    by_test = [most_uncertain(table, scaled, PRECISIONS, TEMPERATURES, 1.0, z=z).precision for z in (0.0, 1.0, 2.0)]
    assert by_test == sorted(by_test, reverse=True)
    given = table, scaled, PRECISIONS, TEMPERATURES, 1.0
    by_slack = [most_uncertain_within(*given, slack=slack) for slack in (0.0, 0.1, 1.0)]
    assert [c.precision for c in by_slack] == sorted((c.precision for c in by_slack), reverse=True)
    for choice, slack in zip(by_slack, (0.0, 0.1, 1.0), strict=True):
        assert choice.best <= choice.loss <= choice.best + slack


def test_ignored_positions_count_for_nothing(x64):
    case = wide()
    targets = np.array(case.targets("cross_entropy"))
    kept = np.arange(len(targets)) % 3 > 0
    family = ClassFamily(Partial(mean_field_2), ignore_index=-100)

    def search(inputs, target):
        how = {"together": 3, "positions": 1, "precisions": PRECISIONS, "temperatures": TEMPERATURES}
        batches = [Batch(inputs, target)]
        return held_out_search(case.model_fn, case.params, curvature(case, "dense"), batches, family, **how)

    some, few = search(case.inputs, np.where(kept, targets, -100)), search(case.inputs[kept], targets[kept])
    np.testing.assert_allclose(some.table.losses.sum(0), few.table.losses.sum(0), rtol=1e-9)
    assert some.table.counts.sum() == few.table.counts.sum() == kept.sum()
    np.testing.assert_allclose(some.temperature, few.temperature, rtol=1e-6)
    with pytest.raises(ValueError, match="all are ignored"):
        search(case.inputs, np.full_like(targets, -100))
