"""Passes of features: the trunk meets each sample once where features can be kept, and what passes prove stays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_core.data.checkpoint import Checkpoint
from jax_core.data.passes import LoaderPasses
from jax_core.fit import FitOptions, fit_curvature
from jax_core.frozen import FeaturePasses, split
from jax_core.likelihoods import Categorical
from jax_core.xla.chunks import example_shapes

WIDTH, SAMPLES = 32, 41
W1 = jax.random.normal(jax.random.key(1), (5, WIDTH))
W0 = jax.random.normal(jax.random.key(6), (WIDTH, WIDTH)) / WIDTH**0.5
W2 = {"w": jax.random.normal(jax.random.key(2), (WIDTH, 3)) / WIDTH**0.5, "b": jnp.zeros(3)}
X = np.asarray(jax.random.normal(jax.random.key(3), (SAMPLES, 5)))
Y = np.asarray(jax.random.randint(jax.random.key(4), (SAMPLES,), 0, 3))
LOADER = [(X[i : i + 16], Y[i : i + 16]) for i in range(0, SAMPLES, 16)]


def passes(**options):
    return LoaderPasses(LOADER, **options)


def counted():
    """A model whose trunk notes how many samples it has met, and the notes."""
    met = []

    def note(x):
        met.append(x.size // 5)
        return np.asarray(x)

    def model(x, params):
        seen = jax.pure_callback(note, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="expand_dims")
        return jnp.tanh(jnp.tanh(seen @ W1) @ W0) @ params["w"] + params["b"]

    return model, met


def fit(model, data, **options):
    return fit_curvature(
        model, W2, Categorical(), data, FitOptions(**options, progress=False, rank=20), key=jax.random.key(0)
    )


@pytest.mark.parametrize(
    ("structure", "method"),
    [("full", "auto"), ("diag", "auto"), ("lowrank", "lanczos"), ("lowrank", "nystrom"), ("lowrank", "gram")],
)
def test_fit_runs_the_trunk_once_for_each_sample(structure, method):
    model, met = counted()
    fit(model, passes(), structure=structure, method=method, passes=2)
    padded = sum(min(32, 1 << (len(x) - 1).bit_length()) for x, _ in LOADER)
    assert sum(met) == padded


@pytest.mark.parametrize("cache", ["auto", "none"])
@pytest.mark.parametrize("options", [{"structure": "full"}, {"structure": "diag"}, {"method": "lanczos"}], ids=str)
def test_fit_on_features_is_the_fit_on_inputs(options, cache):
    def model(x, params):
        return jnp.tanh(jnp.tanh(x @ W1) @ W0) @ params["w"] + params["b"]

    got = fit(model, passes(cache=cache), **options)
    features = [(np.tanh(np.tanh(x @ np.asarray(W1)) @ np.asarray(W0)), y) for x, y in LOADER]
    wanted = fit(lambda h, params: h @ params["w"] + params["b"], LoaderPasses(features), **options)
    vector = jax.random.normal(jax.random.key(5), (got.curvature.size,))
    np.testing.assert_allclose(got.curvature.mv(vector), wanted.curvature.mv(vector), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(got.nll, wanted.nll, rtol=1e-5)


def feature_passes(**options):
    trunk, _ = split(lambda x, p: jnp.tanh(jnp.tanh(x @ W1) @ W0) @ p["w"], W2, example_shapes(jnp.asarray(X)))
    data = passes(**options)
    return FeaturePasses(trunk, data), data


@pytest.mark.parametrize(("options", "kept"), [({}, True), ({"cache": "none"}, False), ({"cache_bytes": 900}, False)])
def test_features_are_kept_within_the_budget(options, kept):
    mapped, _ = feature_passes(**options)
    mapped.peek()
    first, second = list(mapped), list(mapped)
    assert mapped.cached is kept
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.input[0], b.input[0])
        np.testing.assert_array_equal(a.target, b.target)


def test_marks_are_those_of_the_inputs():
    mapped, data = feature_passes()
    list(mapped)
    assert (mapped.fingerprint, mapped.num_samples) == (data.fingerprint, SAMPLES)
    assert [mapped.mark(n) for n in (1, 2, 3)] == [data.mark(n) for n in (1, 2, 3)]


def test_checkpoint_of_a_fit_on_features_goes_on(tmp_path):
    def run(loader):
        kept = Checkpoint(tmp_path, "one")
        options = FitOptions(structure="full", progress=False)
        return fit_curvature(
            lambda x, p: jnp.tanh(jnp.tanh(x @ W1) @ W0) @ p["w"] + p["b"],
            W2,
            Categorical(),
            LoaderPasses(loader),
            options,
            key=jax.random.key(0),
            checkpoint=kept,
        )

    first, second = run(LOADER), run(LOADER)
    np.testing.assert_allclose(first.curvature.matrix(), second.curvature.matrix(), rtol=1e-6)
