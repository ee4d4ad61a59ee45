"""Every structure and method of a fit against the dense GGN."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_core.fit
import jax_core.source
from jax_core import FitOptions, LoaderPasses, as_likelihood, fit_curvature
from jax_core.curvature.kept_products import KeptProducts
from jax_core.curvature.product_stream import ProductStream
from jax_core.lowrank.plan import Plan
from jax_core.posterior import gaussian_log_likelihood
from jax_core.xla.compiled import as_jit_argument
from tests.cases import LOSSES, attention, cnn, dense_ggn, mlp, sample_loss

pytestmark = pytest.mark.in_turns

METHODS = ("auto", "gram", "nystrom", "lanczos", "lobpcg")


@functools.cache
def wide(case, loss):
    """The case and its dense GGN, made once: programs are known by the model's identity."""
    with jax.enable_x64(True):
        made = case()
        return made, as_jit_argument(made.model_fn), dense_ggn(made, loss)


def fit(case, loss, *, batch=4, total=None, cache="auto", likelihood=None, **options):
    case, model, _ = wide(case, loss)
    data = case.data(loss)
    batches = [jax.tree.map(lambda leaf, i=i: leaf[i : i + batch], data) for i in range(0, len(case.inputs), batch)]
    return fit_curvature(
        model,
        case.params,
        as_likelihood(loss) if likelihood is None else likelihood,
        LoaderPasses(batches, cache=cache),
        FitOptions(progress=False, **({"tolerance": 0.0} | options)),
        key=jax.random.key(0),
        num_total_samples=total,
    )


def matrix(operator):
    return jax.vmap(operator.mv)(jnp.eye(operator.size))


def by_products(monkeypatch, strategy="products"):
    """The cost model prefers rows for models as small as these; here it must not."""
    monkeypatch.setattr(jax_core.fit, "choose", lambda problem: Plan("nystrom", strategy, "a test"))
    monkeypatch.setattr(jax_core.fit, "cheapest", lambda problem, *among: strategy)


@pytest.mark.parametrize(
    ("case", "loss"), [*((mlp, loss) for loss in LOSSES), (cnn, "cross_entropy"), (attention, "mse")]
)
def test_full_is_the_dense_ggn_and_diag_its_diagonal(x64, case, loss):
    expected = wide(case, loss)[2]
    full, diag = (fit(case, loss, structure=structure) for structure in ("full", "diag"))
    np.testing.assert_allclose(matrix(full.curvature), expected, atol=1e-10)
    np.testing.assert_allclose(diag.curvature.diagonal, jnp.diagonal(expected), atol=1e-10)
    assert full.plan is diag.plan is None
    assert (full.curvature.eigenvalues >= 0).all()  # rounding below zero is dropped


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("method", METHODS)
def test_low_rank_holds_the_leading_eigenpairs(x64, method, loss):
    expected = wide(mlp, loss)[2]
    values, vectors = (found[..., ::-1] for found in np.linalg.eigh(np.asarray(expected)))
    # Lanczos converges at the ends of the spectrum first, so it takes more steps than eigenpairs are compared
    rank = {"lanczos": 30, "lobpcg": 6}.get(method, 6)
    found = fit(mlp, loss, method=method, rank=rank, passes=6).curvature
    np.testing.assert_allclose(found.s[:4], values[:4], rtol=1e-5)
    np.testing.assert_allclose(jnp.abs((found.U[:, :4] * vectors[:, :4]).sum(0)), 1, rtol=1e-4)
    np.testing.assert_allclose(found.U.T @ found.U, np.eye(found.rank), atol=1e-9)
    assert found.alpha == 0


@pytest.mark.parametrize("case", [mlp, attention])
@pytest.mark.parametrize("method", ["auto", "gram", "nystrom", "lanczos"])
def test_enough_rank_gives_the_whole_ggn(x64, method, case):
    """Nine samples of three outputs have at most 27 directions of curvature."""
    expected = wide(case, "mse")[2]
    found = fit(case, "mse", method=method, rank=40).curvature
    np.testing.assert_allclose(matrix(found), expected, atol=1e-6 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize(("method", "passes"), [("lanczos", 1), ("lobpcg", 1), ("nystrom", 3)])
@pytest.mark.parametrize("cache", ["memory", "none"])
def test_kept_linearisations_give_what_streamed_ones_give(x64, monkeypatch, method, passes, cache):
    by_products(monkeypatch)
    made = {}

    def spy(kind):
        def make(*arguments, **options):
            made[kind] = made.get(kind, 0) + 1
            return kind(*arguments, **options)

        return make

    for kind in (KeptProducts, ProductStream):
        monkeypatch.setattr(jax_core.source, kind.__name__, spy(kind))
    options = {"method": method, "passes": passes, "rank": 8, "batch": 4, "cache": cache}
    kept = fit(mlp, "cross_entropy", keep_bytes=2**30, **options)
    streamed = fit(mlp, "cross_entropy", keep_bytes=0, **options)
    assert made[ProductStream] >= 1
    np.testing.assert_allclose(kept.curvature.s, streamed.curvature.s, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(matrix(kept.curvature), matrix(streamed.curvature), atol=1e-7)
    np.testing.assert_allclose(kept.nll, streamed.nll, rtol=1e-12)
    assert kept.num_samples == streamed.num_samples == 9


def read_before(case, loss):
    case, model, _ = wide(case, loss)
    passes = LoaderPasses([(case.inputs, case.targets(loss))])
    passes.preload()
    return jax_core.source.Source(model, case.params, as_likelihood(loss), passes)


def test_linearisations_are_kept_only_for_several_passes_that_fit_into_memory(x64):
    source = read_before(mlp, "mse")
    assert source.passes.num_samples == 9
    assert isinstance(source.products(repeated=True, keep_bytes=2**30), KeptProducts)
    assert isinstance(source.products(repeated=False, keep_bytes=2**30), ProductStream)
    need = jax_core.source.residual_bytes(source.model_fn, source.params, source.likelihood, next(iter(source.passes)))
    assert isinstance(source.products(repeated=True, keep_bytes=int(9 * need) - 1), ProductStream)
    assert isinstance(source.products(repeated=True, keep_bytes=int(9 * need) + 1), KeptProducts)


@pytest.mark.parametrize("strategy", ["products", "jacobians"])
def test_every_strategy_leads_to_the_same_low_rank(x64, monkeypatch, strategy):
    by_products(monkeypatch, "rows")
    rows = fit(mlp, "cross_entropy", method="nystrom", rank=12)
    by_products(monkeypatch, strategy)
    found = fit(mlp, "cross_entropy", method="nystrom", rank=12)
    assert (rows.plan.strategy, found.plan.strategy) == ("rows", strategy)
    np.testing.assert_allclose(matrix(rows.curvature), matrix(found.curvature), atol=1e-8)
    np.testing.assert_allclose(rows.nll, found.nll, rtol=1e-12)


@pytest.mark.parametrize("tolerance", [1e-3, 0.05])
@pytest.mark.parametrize("method", ["gram", "nystrom"])
def test_tolerance_bounds_what_is_dropped(x64, method, tolerance):
    """What is dropped is positive, and no more than the tolerance of the loss Hessians' trace in output space."""
    exact = fit(mlp, "cross_entropy", method=method, rank=30)
    loose = fit(mlp, "cross_entropy", method=method, rank=30, tolerance=tolerance)
    missing = np.linalg.eigvalsh(np.asarray(matrix(exact.curvature) - matrix(loose.curvature)))
    assert missing.min() > -1e-8
    assert missing.sum() < 3 * tolerance * exact.curvature.s.sum()


@pytest.mark.parametrize("structure", ["lowrank", "full", "diag"])
def test_total_samples_scale_curvature_and_loss(x64, structure):
    plain = fit(mlp, "mse", structure=structure, rank=10)
    scaled = fit(mlp, "mse", structure=structure, rank=10, total=90)
    np.testing.assert_allclose(matrix(scaled.curvature), 10 * matrix(plain.curvature), rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(scaled.nll, 10 * plain.nll, rtol=1e-12)
    assert (plain.num_samples, plain.num_total_samples, plain.num_outputs) == (9, 9, 27)
    assert (scaled.num_samples, scaled.num_total_samples, scaled.num_outputs) == (9, 90, 270)


@pytest.mark.parametrize(
    ("structure", "loss"), [("lowrank", "mse"), ("full", "cross_entropy"), ("diag", "binary_cross_entropy")]
)
def test_log_likelihood_is_the_sum_over_the_data(x64, structure, loss):
    case = wide(mlp, loss)[0]
    fitted = fit(mlp, loss, structure=structure, rank=10)
    outputs = jax.vmap(lambda x: case.model_fn(x, case.params))(case.inputs)
    nll = float(jax.vmap(sample_loss(loss))(outputs, case.targets(loss)).sum())
    np.testing.assert_allclose(fitted.nll, nll, rtol=1e-10)
    expected = gaussian_log_likelihood(nll, 27, 0.4) if loss == "mse" else -nll
    np.testing.assert_allclose(fitted.log_likelihood(as_likelihood(loss), 0.4), expected, rtol=1e-10)


@pytest.mark.parametrize("method", ["gram", "nystrom", "lanczos"])
@pytest.mark.parametrize("batch", [1, 9])
def test_fit_does_not_depend_on_the_batches(x64, method, batch):
    found, whole = (fit(mlp, "mse", method=method, rank=30, batch=size).curvature for size in (batch, 4))
    np.testing.assert_allclose(matrix(found), matrix(whole), atol=1e-6)


@pytest.mark.parametrize("options", [{"method": "gram"}, {"method": "nystrom"}, {"structure": "full"}])
def test_the_trace_of_the_whole_curvature_comes_with_a_pass(x64, monkeypatch, options):
    by_products(monkeypatch, "rows")
    expected = float(jnp.trace(wide(mlp, "mse")[2]))
    found = fit(mlp, "mse", rank=20, total=90, **options)
    assert found.trace == pytest.approx(10 * expected, rel=1e-10)
    share = 1 - float(found.curvature.trace()) / (10 * expected)
    assert found.left_out == pytest.approx(max(share, 0), abs=1e-9)


def test_a_small_rank_is_warned_of_and_products_tell_no_trace(x64):
    with pytest.warns(UserWarning, match="Rank 1 leaves out"):
        fit(mlp, "mse", method="gram", rank=1)
    assert fit(mlp, "mse", method="lanczos", rank=3).left_out is None


@pytest.mark.parametrize("rank", [0, -1])
def test_ranks_below_one_are_refused(rank):
    with pytest.raises(ValueError, match=f"rank={rank}: "):
        FitOptions(rank=rank)


@pytest.mark.parametrize("method", ["gram", "nystrom", "lanczos", "block_lanczos"])
def test_a_rank_beyond_the_matrix_is_that_of_the_matrix(x64, method):
    found = fit(mlp, "mse", method=method, rank=1000)
    assert found.curvature.size == 51 and found.curvature.rank <= 51
    assert "rank 51 (all there are)" in found.plan.reason
    np.testing.assert_allclose(found.curvature.mv(jnp.ones(51)), dense_ggn(mlp(), "mse") @ jnp.ones(51), atol=1e-8)


@pytest.mark.parametrize("structure", ["full", "diag", "kron", "ekfac", "gp"])
def test_methods_that_a_structure_does_not_use_are_refused(structure):
    with pytest.raises(ValueError, match=f"method='lanczos' does not go with hessian_structure='{structure}'"):
        FitOptions(structure=structure, method="lanczos")


def test_gram_refuses_rows_past_its_memory(x64):
    with pytest.raises(ValueError, match="rows_bytes"):
        fit(mlp, "mse", method="gram", rank=5, rows_bytes=100)


def test_a_loss_that_is_not_finite_names_its_batch():
    case, model, _ = wide(mlp, "mse")
    inputs = np.array(case.inputs, np.float32)
    targets = np.array(case.targets("mse"), np.float32)
    broken = inputs.copy()
    broken[2] = np.inf
    for options in ({"structure": "diag"}, {"structure": "full"}, {"method": "lanczos", "rank": 3}):
        passes = LoaderPasses([(inputs, targets), (broken * np.nan, targets)])
        with pytest.raises(FloatingPointError, match="batch 1 is nan"):
            fit_curvature(
                model,
                jax.tree.map(lambda leaf: jnp.asarray(np.array(leaf), jnp.float32), case.params),
                as_likelihood("mse"),
                passes,
                FitOptions(progress=False, **options),
                key=jax.random.key(0),
            )


def many_outputs(hidden, **options):
    """A fit of four samples, of 120 outputs each, through a hidden layer or none."""
    rng = np.random.default_rng(0)
    params = {"v": jnp.asarray(rng.normal(size=(50, 120)), "float32")}
    params |= {"w": jnp.asarray(rng.normal(size=(3, 50)), "float32")} if hidden else {}
    batch = jnp.asarray(rng.normal(size=(4, 3 if hidden else 50)), "float32"), jnp.arange(4)

    def model(input, params):
        return (jnp.tanh(input @ params["w"]) if hidden else input) @ params["v"]

    how = FitOptions(progress=False, structure="kron", **options)
    passes, loss = LoaderPasses([batch]), as_likelihood("cross_entropy")
    return fit_curvature(model, params, loss, passes, how, key=jax.random.key(0))


def test_a_long_fit_of_many_outputs_says_so_before(monkeypatch):
    many_outputs(hidden=True)  # four samples are not long
    monkeypatch.setattr(jax_core.source, "_LONG", 1e4)
    with pytest.warns(UserWarning, match="120 outputs .* 120 epochs of training.*'mc_fisher' takes one pass"):
        many_outputs(hidden=True)


@pytest.mark.parametrize("how", [{"hidden": True, "curvature": "mc_fisher"}, {"hidden": False}])
def test_what_takes_no_pass_for_each_output_does_not(monkeypatch, how):
    monkeypatch.setattr(jax_core.source, "_LONG", 1e4)
    many_outputs(**how)
