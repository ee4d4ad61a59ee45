"""Each use of a matrix is a position of its Kronecker block, by the definition of both approximations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_core.operators import Kronecker
from tests.cases import Case, dense_ggn, sample_loss
from tests.jax_core.kronecker.test_fit import dense, fit, predicting_as_dense, slices

pytestmark = pytest.mark.in_turns


def _plain(met, result):
    return result


def siamese(x, p, tap=_plain):
    """One trunk for two inputs, with its bias."""

    def trunk(half):
        return jnp.tanh(tap(half, half @ p["w"] + p["b"]))

    return (trunk(x[:4]) - 2.0 * trunk(x[4:])) @ p["out"]


def applied_twice(x, p, tap=_plain):
    """A layer of several positions, and again behind itself."""
    rows = x.reshape(2, 4)
    hidden = jnp.tanh(tap(rows, rows @ p["w"] + p["b"]))
    return tap(hidden, hidden @ p["w"] + p["b"]).sum(0) @ p["out"]


def recurrent(x, p, tap=_plain):
    """A cell that is called step by step."""
    state = jnp.ones(4)
    for at in x.reshape(4, 2):
        state = jnp.tanh(tap(state, state @ p["w"] + p["b"]) + jnp.concatenate([at, at]))
    return state @ p["out"]


def looped(x, p, *, reverse=False, weight=lambda p: p["w"], also=lambda p: 0.0):
    """The same as one loop, whose steps multiply by the matrix."""

    def step(state, at):
        state = jnp.tanh(state @ weight(p) + p["b"] + jnp.concatenate([at, at]) + also(p))
        return state, state

    steps = x.reshape(4, 2)
    last, states = jax.lax.scan(step, jnp.ones(4), steps[::-1] if reverse else steps, reverse=reverse)
    return (last + 0.0 * states.sum(0)) @ p["out"]


def case(model):
    keys = iter(jax.random.split(jax.random.key(0), 4))
    params = {name: jax.random.normal(next(keys), s) for name, s in {"w": (4, 4), "b": (4,), "out": (4, 3)}.items()}
    return Case(getattr(model, "__name__", "looped"), model, params, jax.random.normal(next(keys), (7, 8)), 3)


def factors(one, kfac_approx):
    """Written down: the sums of both outer products over samples, and over uses and positions or before them."""
    gradients, inputs = 0.0, 0.0
    for x, target in zip(one.inputs, one.targets("cross_entropy"), strict=True):
        met = []

        def note(vectors, result, met=met):
            met.append(jnp.atleast_2d(vectors))
            return result

        output = one.model_fn(x, one.params, note)
        sizes = np.cumsum([0, *map(len, met)])

        def probed(probe, x=x, sizes=sizes):
            start = iter(sizes)

            def add(_, result, probe=probe, start=start):
                at = next(start)
                return result + probe[at : at + jnp.atleast_2d(result).shape[0]].reshape(result.shape)

            return one.model_fn(x, one.params, add)

        cotangents = jax.jacrev(probed)(jnp.zeros((sizes[-1], 4)))  # (C, S, O)
        vectors = jnp.concatenate(met)
        if kfac_approx == "reduce":
            cotangents, vectors = cotangents.sum(1, keepdims=True), vectors.mean(0, keepdims=True)
        hessian = jax.hessian(sample_loss("cross_entropy"))(output, target)
        gradients += jnp.einsum("cso,cd,dsp->op", cotangents, hessian, cotangents)
        inputs += vectors.T @ vectors / len(vectors) / len(one.inputs)
    return inputs, gradients


@pytest.mark.parametrize("kfac_approx", ["expand", "reduce"])
@pytest.mark.parametrize("model", [siamese, applied_twice, recurrent])
def test_the_block_is_the_product_of_both_factors(x64, model, kfac_approx):
    one = case(model)
    found = fit(one, "kron", kfac_approx=kfac_approx).curvature
    inputs, gradients = factors(one, kfac_approx)
    part, at = found.parts[2], slices(one)
    assert isinstance(part, Kronecker)
    np.testing.assert_allclose(dense(part), jnp.kron(inputs, gradients), atol=1e-10)
    np.testing.assert_allclose(dense(found)[at[0], at[0]], gradients, atol=1e-10)  # of its bias


@pytest.mark.parametrize("model", [siamese, applied_twice, recurrent])
def test_ekfac_has_the_exact_diagonal_in_the_factors_coordinates(x64, model):
    one = case(model)
    found = fit(one, "ekfac").curvature
    turned = found.rotate(found.rotate(dense_ggn(one, "cross_entropy")).T)
    np.testing.assert_allclose(found.spectrum, jnp.diag(turned), atol=1e-10)
    inputs, gradients = factors(one, "expand")
    for side, factor in ((found.parts[2].left, inputs), (found.parts[2].right, gradients)):
        inner = side.T @ factor @ side
        np.testing.assert_allclose(inner, jnp.diag(jnp.diag(inner)), atol=1e-10)


@pytest.mark.parametrize("structure", ["kron", "ekfac", "kron_lowrank"])
@pytest.mark.parametrize("model", [siamese, applied_twice, recurrent])
def test_predictions_are_those_of_the_operator(x64, structure, model):
    one = case(model)
    predicting_as_dense(one, fit(one, structure, rank=3).curvature)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kfac_approx", ["expand", "reduce"])
def test_a_loop_is_the_same_as_its_steps_one_after_the_other(x64, kfac_approx, reverse):
    loop, unrolled = case(functools.partial(looped, reverse=reverse)), case(recurrent)
    found = fit(loop, "kron", kfac_approx=kfac_approx)
    wanted = fit(unrolled, "kron", kfac_approx=kfac_approx).curvature.parts[2]
    assert ", 1 dense (" in found.plan.reason
    np.testing.assert_allclose(dense(found.curvature.parts[2]), dense(wanted), atol=1e-10)
    predicting_as_dense(loop, found.curvature)


@pytest.mark.parametrize("structure", ["ekfac", "kron_lowrank"])
def test_the_diagonal_of_a_loop_is_exact_in_the_factors_coordinates(x64, structure):
    one = case(looped)
    found = fit(one, structure, rank=3).curvature
    blocks = found if structure == "ekfac" else found.blocks
    exact = blocks.rotate(blocks.rotate(dense_ggn(one, "cross_entropy")).T)
    spectrum = blocks.spectrum if structure == "ekfac" else blocks.spectrum + jnp.square(found.U) @ found.s
    np.testing.assert_allclose(spectrum, jnp.diag(exact), atol=1e-10)
    predicting_as_dense(one, found)


@pytest.mark.parametrize(
    "other",
    [{"weight": lambda p: p["w"] * jnp.arange(1.0, 5.0)[:, None]}, {"also": lambda p: p["w"].sum(0)}],
)
def test_a_loop_that_does_more_with_a_matrix_leaves_it_a_dense_block(x64, other):
    one = case(functools.partial(looped, **other))
    found = fit(one, "kron")
    assert "1 Kronecker block, 2 dense (" in found.plan.reason
    exact = dense_ggn(one, "cross_entropy")[slices(one)[2], slices(one)[2]]
    np.testing.assert_allclose(dense(found.curvature.parts[2]), exact, atol=1e-10)


def test_a_table_that_is_also_the_decoder_stays_a_dense_block_and_is_counted(x64):
    def tied(x, p):
        return jnp.tanh(p["table"][x] @ p["w"]).mean(0) @ p["table"].T

    params = {"table": jax.random.normal(jax.random.key(0), (3, 4)), "w": jnp.eye(4)}
    inputs = jax.random.randint(jax.random.key(1), (7, 5), 0, 3)
    result = fit(Case("tied", tied, params, inputs, 3), "kron")
    assert "1 Kronecker block, 1 dense (" in result.plan.reason
    exact = dense_ggn(Case("tied", tied, params, inputs, 3), "cross_entropy")
    np.testing.assert_allclose(dense(result.curvature)[:12, :12], exact[:12, :12], atol=1e-10)
