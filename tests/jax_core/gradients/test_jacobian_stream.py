"""Products of blocks with Jacobians equal those of the dense GGN, however data and Jacobians are cut."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_core.gradients.jacobians
from jax_core import LoaderPasses, as_likelihood
from jax_core.gradients import jacobian_stream
from jax_core.gradients.jacobian_stream import JacobianStream, plan_jacobians
from jax_core.xla import chunks
from jax_core.xla.compiled import as_jit_argument
from tests.cases import LOSSES, attention, cnn, dense_ggn, flatten, mlp, sample_loss

pytestmark = pytest.mark.in_turns


def stream(case, loss, batch):
    data = case.data(loss)
    count = len(case.inputs)
    batches = [jax.tree.map(lambda leaf, i=i: leaf[i : i + batch], data) for i in range(0, count, batch)]
    return JacobianStream(as_jit_argument(case.model_fn), case.params, as_likelihood(loss), LoaderPasses(batches))


def vectors(case, count=3):
    return jax.random.normal(jax.random.key(1), (count, flatten(case.params).size))


@pytest.mark.parametrize(
    ("make", "loss", "worth"),
    [*((mlp, loss, 1) for loss in LOSSES), (mlp, "cross_entropy", 2**12), (cnn, "mse", 1), (attention, "mse", 1)],
)
def test_block_is_the_dense_product(x64, monkeypatch, make, loss, worth):
    """With dense layers in factors where they are worth it, and written out."""
    monkeypatch.setattr(jax_core.gradients.jacobians, "_WORTH", worth)
    case = make()
    rows = vectors(case)
    np.testing.assert_allclose(stream(case, loss, 4).block(rows), rows @ dense_ggn(case, loss), atol=1e-10)


def test_large_block_is_the_dense_product(monkeypatch):
    """At a size from which XLA's CPU backend fuses otherwise."""
    monkeypatch.setattr(jax_core.gradients.jacobians, "_WORTH", 1)
    case = dataclasses.replace(mlp(), inputs=jax.random.normal(jax.random.key(0), (128, 4)))
    rows = vectors(case, 150)
    found = stream(case, "cross_entropy", 128).block(rows)
    expected = rows @ dense_ggn(case, "cross_entropy")
    np.testing.assert_allclose(found, expected, atol=1e-5 * jnp.abs(expected).max())


@pytest.mark.parametrize(("batch", "piece", "chunk_bytes"), [(9, 9, 1), (9, 4, 2**20), (2, 128, 1), (5, 3, 4_000)])
def test_neither_batches_nor_pieces_nor_padding_show(x64, monkeypatch, batch, piece, chunk_bytes):
    monkeypatch.setattr(jax_core.gradients.jacobians, "_WORTH", 1)
    monkeypatch.setattr(chunks, "_MOST_EXAMPLES", piece)
    monkeypatch.setattr(jacobian_stream, "_CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(jacobian_stream, "plan_jacobians", plan_jacobians.__wrapped__)  # remembers other limits
    case = mlp()
    found, rows = stream(case, "cross_entropy", batch), vectors(case)
    np.testing.assert_allclose(found.block(rows), rows @ dense_ggn(case, "cross_entropy"), atol=1e-10)
    outputs = jax.vmap(lambda x: case.model_fn(x, case.params))(case.inputs)
    nll = jax.vmap(sample_loss("cross_entropy"))(outputs, case.targets("cross_entropy")).sum()
    np.testing.assert_allclose(found.sums.nll, nll, rtol=1e-12)
    assert (found.sums.samples, found.sums.outputs_per_sample) == (9, 3)


@pytest.mark.parametrize("committed", [True, False])
def test_a_pass_takes_one_program_whatever_its_last_batch_and_its_devices(compilations, committed):
    case = dataclasses.replace(mlp(), inputs=jax.random.normal(jax.random.key(0), (11, 4)))
    if committed:  # as arrays from torch are
        case = dataclasses.replace(case, params=jax.device_put(case.params, jax.devices()[0]))
    jacobian_stream._add.clear_cache()  # another test may have compiled the same
    rows = vectors(case)
    found = stream(case, "cross_entropy", 4).block(rows)
    assert compilations(jacobian_stream._add) == 1
    np.testing.assert_allclose(found, rows @ dense_ggn(case, "cross_entropy"), rtol=1e-4, atol=1e-4)


def test_a_loss_that_is_not_finite_names_its_batch():
    case = cnn()
    broken = stream(case, "mse", 7)
    broken.params = jax.tree.map(lambda leaf: leaf * jnp.nan, case.params)
    with pytest.raises(FloatingPointError, match="batch 0"):
        broken.block(vectors(case))
