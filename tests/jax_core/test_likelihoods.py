"""Likelihoods against `jax.hessian`, torch and sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jax_core.likelihoods import (
    Bernoulli,
    Categorical,
    Custom,
    Gaussian,
    Unweighted,
    as_likelihood,
    dense_hessian,
    score,
)
from tests.cases import LOSSES, sample_loss


def outputs_and_targets(loss, shape=(5, 4), seed=0):
    outputs = 2 * jax.random.normal(jax.random.key(seed), shape)
    if loss == "cross_entropy":
        return outputs, jax.random.randint(jax.random.key(1), shape[:1], 0, shape[1])
    return outputs, jax.random.bernoulli(jax.random.key(1), 0.5, shape).astype(float)


@pytest.mark.parametrize("loss", LOSSES)
def test_analytic_hessian_is_the_derivative_of_the_loss(x64, loss):
    outputs, targets = outputs_and_targets(loss)
    expected = jax.vmap(jax.hessian(sample_loss(loss)))(outputs, targets)
    np.testing.assert_allclose(dense_hessian(as_likelihood(loss), outputs, targets), expected, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_nll_is_the_loss_of_each_sample(x64, loss):
    outputs, targets = outputs_and_targets(loss)
    expected = jax.vmap(sample_loss(loss))(outputs, targets)
    np.testing.assert_allclose(as_likelihood(loss).nll(outputs, targets), expected, rtol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_custom_loss_equals_the_named_one(x64, loss):
    outputs, targets = outputs_and_targets(loss)
    custom, named = Custom(sample_loss(loss)), as_likelihood(loss)
    vector = jax.random.normal(jax.random.key(2), outputs.shape)
    np.testing.assert_allclose(custom.nll(outputs, targets), named.nll(outputs, targets), rtol=1e-12)
    np.testing.assert_allclose(
        custom.hessian_mv(outputs, targets, vector), named.hessian_mv(outputs, targets, vector), atol=1e-12
    )


@given(smoothing=st.sampled_from([0.0, 0.1, 0.7]), weighted=st.booleans(), ignored=st.booleans())
def test_categorical_takes_torchs_options(smoothing, weighted, ignored):
    with jax.enable_x64(True):
        outputs, targets = outputs_and_targets("cross_entropy", (6, 3))
        weight = np.array([0.5, 2.0, 1.0]) if weighted else None
        ignore = 1 if ignored else None
        likelihood = Categorical(None if weight is None else jnp.asarray(weight), smoothing, ignore)
        peer = torch.nn.CrossEntropyLoss(
            weight=None if weight is None else torch.tensor(weight),
            label_smoothing=smoothing,
            ignore_index=-100 if ignore is None else ignore,
            reduction="none",
        )
        z = torch.tensor(np.asarray(outputs))
        y = torch.tensor(np.asarray(targets)).long()
        np.testing.assert_allclose(likelihood.nll(outputs, targets), peer(z, y), atol=1e-12)
        hessian = torch.autograd.functional.hessian(lambda z: peer(z, y).sum(), z)
        expected = torch.einsum("bcbd->bcd", hessian)
        np.testing.assert_allclose(dense_hessian(likelihood, outputs, targets), expected, atol=1e-12)


def test_positive_weight_is_torchs(x64):
    outputs, targets = outputs_and_targets("binary_cross_entropy")
    weight = np.array([1.0, 3.0, 0.5, 2.0])
    peer = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(weight), reduction="none")
    z, y = torch.tensor(np.asarray(outputs)), torch.tensor(np.asarray(targets))
    likelihood = Bernoulli(jnp.asarray(weight))
    np.testing.assert_allclose(likelihood.nll(outputs, targets), peer(z, y).sum(-1), rtol=1e-12)
    hessian = torch.autograd.functional.hessian(lambda z: peer(z, y).sum(), z)
    np.testing.assert_allclose(
        dense_hessian(likelihood, outputs, targets), torch.einsum("bcbd->bcd", hessian), atol=1e-12
    )


def test_probabilities_as_targets_equal_indices(x64):
    outputs, targets = outputs_and_targets("cross_entropy")
    one_hot = jax.nn.one_hot(targets, 4)
    np.testing.assert_allclose(Categorical().nll(outputs, one_hot), Categorical().nll(outputs, targets), rtol=1e-12)


@pytest.mark.parametrize("likelihood", [Categorical(), Gaussian(), Bernoulli()], ids=lambda x: type(x).__name__)
def test_expected_outer_product_of_scores_is_the_hessian(x64, likelihood):
    """The Fisher identity, which ties sample, score and Hessian together."""
    outputs = jax.random.normal(jax.random.key(0), (1, 3))
    many = jnp.broadcast_to(outputs, (200_000, 3))
    targets = likelihood.sample(jax.random.key(1), many)
    scores = score(likelihood, many, targets)
    fisher = scores.T @ scores / len(scores)
    target = targets[:1]
    np.testing.assert_allclose(fisher, dense_hessian(likelihood, outputs, target)[0], atol=0.01)


def test_no_loss_has_identity_hessian():
    vector = jnp.arange(6.0).reshape(2, 3)
    assert (Unweighted().hessian_mv(vector, None, vector) == vector).all()


def test_unknown_loss_is_named_in_the_error():
    with pytest.raises(ValueError, match=r"'crossentropy'.*'cross_entropy'"):
        as_likelihood("crossentropy")
    with pytest.raises(TypeError, match="not int"):
        as_likelihood(3)


def test_targets_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(4,\) do not fit outputs of shape \(2, 3\)"):
        Gaussian().nll(jnp.zeros((2, 3)), jnp.zeros(4))


@pytest.mark.parametrize("likelihood", [Categorical(), Bernoulli()], ids=["categorical", "bernoulli"])
@pytest.mark.parametrize("confidence", [0.0, 5.0, 12.0, 40.0])
def test_hessian_keeps_its_digits_in_float32_however_confident_the_outputs(likelihood, confidence):
    """Its entries then are tiny, and so must be its errors: a negative eigenvalue would look like a wrong loss."""
    outputs = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    outputs[:, 1] += confidence
    target = np.ones(6, int) if isinstance(likelihood, Categorical) else np.ones((6, 4), np.float32)
    found = np.asarray(dense_hessian(likelihood, jnp.asarray(outputs), target), np.float64)
    with jax.enable_x64(True):
        wanted = np.asarray(dense_hessian(likelihood, jnp.asarray(outputs, jnp.float64), target))
    scale = np.abs(wanted).max((1, 2), keepdims=True)
    assert scale.min() > 0
    np.testing.assert_allclose(found / scale, wanted / scale, atol=2e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_hessian_is_right_for_large_blocks(loss):
    """jaxlib 0.10.2 sums wrongly from some 32,000 numbers on, on the CPU (github.com/jax-ml/jax/issues/39103)."""
    outputs, targets = outputs_and_targets(loss, shape=(128, 10))
    likelihood = as_likelihood(loss)
    vectors = jax.random.normal(jax.random.key(2), (128, 10, 60))

    @jax.jit
    def products(outputs, vectors):
        return jax.vmap(lambda v: likelihood.hessian_mv(outputs, targets, v), in_axes=-1, out_axes=-1)(vectors)

    expected = jnp.einsum("bcd,bdk->bck", dense_hessian(likelihood, outputs, targets), vectors)
    np.testing.assert_allclose(products(outputs, vectors), expected, atol=2e-6)
