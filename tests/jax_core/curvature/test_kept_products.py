"""Products from kept linearisations against streamed ones and the dense GGN."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from jax_core.curvature.kept_products import KeptProducts, residual_bytes
from jax_core.curvature.product_stream import ProductStream
from jax_core.data.batches import Batch
from jax_core.data.passes import LoaderPasses
from jax_core.likelihoods import as_likelihood
from jax_core.xla.compiled import as_jit_argument
from tests.cases import CASES, LOSSES, cnn, dense_ggn, flatten, mlp, sample_loss

pytestmark = pytest.mark.in_turns


@functools.cache
def wide(case):
    """The case, made once: programs are known by the model's identity."""
    with jax.enable_x64(True):
        return case()


def passes(case, loss, size=4, **options):
    data = case.data(loss)
    starts = range(0, len(case.inputs), size)
    return LoaderPasses([(data["input"][i : i + size], data["target"][i : i + size]) for i in starts], **options)


def parts(case, loss, size=4, **options):
    """The arguments of both classes."""
    return as_jit_argument(case.model_fn), case.params, as_likelihood(loss), passes(case, loss, size, **options)


def memory(kept):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(kept._kept))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("case", CASES)
def test_kept_and_streamed_products_are_the_dense_ones(x64, case, loss):
    case = wide(case)
    kept, streamed, expected = (
        KeptProducts(*parts(case, loss)),
        ProductStream(*parts(case, loss)),
        dense_ggn(case, loss),
    )
    assert streamed.sums is None
    rows = jax.random.normal(jax.random.key(0), (3, len(expected)))
    for products in (kept, streamed):
        np.testing.assert_allclose(products.product(rows[0]), expected @ rows[0], atol=1e-10)
        np.testing.assert_allclose(products.block(rows), rows @ expected, atol=1e-10)
    outputs = jax.vmap(lambda x: case.model_fn(x, case.params))(case.inputs)
    nll = float(jax.vmap(sample_loss(loss))(outputs, case.targets(loss)).sum())
    for sums in (kept.sums, streamed.sums):
        np.testing.assert_allclose(sums.nll, nll, rtol=1e-10)
        assert (sums.samples, sums.outputs) == (len(case.inputs), len(case.inputs) * case.classes)
        assert sums.outputs_per_sample == case.classes


@pytest.mark.parametrize("count", [1, 9])
def test_a_block_is_its_single_products(x64, count):
    kept = KeptProducts(*parts(wide(mlp), "cross_entropy"))
    rows = jax.random.normal(jax.random.key(1), (count, 51))
    assert kept.block(rows).shape == (count, 51)
    np.testing.assert_allclose(kept.block(rows), jnp.stack([kept.product(row) for row in rows]), atol=1e-12)


@pytest.mark.parametrize("size", [1, 5, 50])
def test_products_do_not_depend_on_the_batches(x64, size):
    case = wide(mlp)
    kept = KeptProducts(*parts(case, "binary_cross_entropy", size))
    vector = jnp.sin(jnp.arange(51.0))
    np.testing.assert_allclose(kept.product(vector), dense_ggn(case, "binary_cross_entropy") @ vector, atol=1e-11)


@pytest.mark.parametrize("budget", [1, 10_000])
def test_products_do_not_depend_on_the_pieces(x64, budget, monkeypatch):
    """Batches are linearised in pieces whose size follows from the activations; the last is ragged."""
    case = wide(cnn)
    whole = KeptProducts(*parts(case, "mse", 7))
    monkeypatch.setattr("jax_core.xla.chunks._TEMPORARIES", budget)
    monkeypatch.setattr("jax_core.xla.chunks._PAST_THE_CLIFF", budget)
    cut = KeptProducts(*parts(case, "mse", 7))
    assert len(whole._kept) == 1
    assert len(cut._kept) > 1 or budget == 10_000
    vector = jnp.cos(jnp.arange(float(flatten(case.params).size)))
    np.testing.assert_allclose(cut.product(vector), whole.product(vector), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(cut.sums.nll, whole.sums.nll, rtol=1e-12)
    assert cut.sums.samples == whole.sums.samples == 7


def test_sums_count_the_data_once_however_many_products_follow(x64):
    for products in (KeptProducts(*parts(wide(mlp), "mse")), ProductStream(*parts(wide(mlp), "mse"))):
        products.product(jnp.ones(51))
        once = products.sums.nll
        products.block(jnp.ones((20, 51)))
        assert (products.sums.samples, products.sums.nll) == (9, once)


@pytest.mark.parametrize("case", CASES)
def test_estimated_memory_is_what_is_kept(x64, case):
    case = wide(case)
    for size in (len(case.inputs), 4):
        kept = KeptProducts(*parts(case, "cross_entropy", size))
        batch = next(iter(passes(case, "cross_entropy", size)))
        estimate = residual_bytes(as_jit_argument(case.model_fn), case.params, as_likelihood("cross_entropy"), batch)
        np.testing.assert_allclose(len(case.inputs) * estimate, memory(kept), rtol=0.1)


def test_estimated_memory_holds_for_batches_cut_into_pieces(monkeypatch):
    monkeypatch.setattr("jax_core.xla.chunks._TEMPORARIES", 20_000)
    case = mlp()
    inputs, targets = jnp.ones((2000, 4)), jnp.zeros((2000, 3))
    model, likelihood = as_jit_argument(case.model_fn), as_likelihood("mse")
    kept = KeptProducts(model, case.params, likelihood, LoaderPasses([(inputs, targets)]))
    assert len(kept._kept) > 2
    estimate = residual_bytes(model, case.params, likelihood, Batch(inputs, targets))
    np.testing.assert_allclose(2000 * estimate, memory(kept), rtol=0.1)


def test_loader_is_read_once_however_many_products_follow():
    case, reads = mlp(), []

    class Counting:
        def __iter__(self):
            reads.append(1)
            yield case.inputs, case.targets("mse")

    kept = KeptProducts(
        as_jit_argument(case.model_fn), case.params, as_likelihood("mse"), LoaderPasses(Counting(), cache="none")
    )
    for _ in range(3):
        kept.product(flatten(case.params))
    assert len(reads) == 1


def test_linearisation_keeps_the_parameters_it_was_made_at(x64):
    case = wide(mlp)
    kept = KeptProducts(*parts(case, "cross_entropy"))
    vector = jnp.ones(51)
    before = kept.product(vector)
    kept.product(2 * vector)
    np.testing.assert_array_equal(kept.product(vector), before)


def test_loss_that_is_not_finite_names_its_batch():
    case = mlp()
    batches = [(case.inputs, case.targets("mse")), (case.inputs * jnp.nan, case.targets("mse"))]
    with pytest.raises(FloatingPointError, match="batch 1 is nan"):
        KeptProducts(as_jit_argument(case.model_fn), case.params, as_likelihood("mse"), LoaderPasses(batches))


def test_model_may_bind_arrays_of_its_own(x64):
    """As the bridge's models bind their buffers: shapes suffice to size the pieces."""
    bound = Partial(lambda scale, x, w: jnp.tanh(w @ (scale + x)), jnp.arange(4.0))
    weights, inputs = jnp.sin(jnp.arange(12.0)).reshape(3, 4), jnp.cos(jnp.arange(20.0)).reshape(5, 4)
    batches = LoaderPasses([(inputs, jnp.zeros((5, 3)))])
    vector = jnp.arange(12.0)
    jacobian = jax.jacobian(lambda w: jax.vmap(lambda x: bound(x, w))(inputs).ravel())(weights).reshape(-1, 12)
    for stream in (KeptProducts, ProductStream):
        product = stream(bound, weights, as_likelihood("mse"), batches).product(vector)
        np.testing.assert_allclose(product, jacobian.T @ (jacobian @ vector), rtol=1e-12)
