"""Sums over a loader: equal to one batch, proved to repeat themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_core import (
    DataLoaderMV,
    LoaderPasses,
    create_ggn_mv,
    create_ggn_mv_without_data,
    create_posterior_fn,
    create_pytree_flattener,
    diagonal,
    get_size,
    to_dense,
    wrap_function,
)
from tests.cases import mlp


class Loader:
    """Counts its passes; shuffles samples, or shows others each time."""

    def __init__(self, inputs, targets, *, batch=4, shuffle=False, limit=None):
        self.inputs, self.targets, self.batch = np.asarray(inputs), np.asarray(targets), batch
        self.shuffle, self.limit, self.passes = shuffle, limit, 0

    def __iter__(self):
        self.passes += 1
        order = np.arange(len(self.inputs))
        if self.shuffle:
            np.random.default_rng(self.passes).shuffle(order)
        order = order[: self.limit]
        for start in range(0, len(order), self.batch):
            rows = order[start : start + self.batch]
            yield {"input": self.inputs[rows], "target": self.targets[rows]}


def setup(**options):
    case = mlp()
    loader = Loader(case.inputs, case.targets("cross_entropy"), **options)
    mv = create_ggn_mv_without_data(case.model_fn, case.params, "cross_entropy", 1.0)
    reference = create_ggn_mv(case.model_fn, case.params, case.data("cross_entropy"), "cross_entropy")
    return case, loader, mv, reference


def assert_trees_close(a, b, **options):
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(left, right, **options)


@pytest.mark.parametrize("cache", ["none", "memory", "auto"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_sum_over_batches_equals_one_batch(x64, cache, shuffle):
    case, loader, mv, reference = setup(shuffle=shuffle)
    product = DataLoaderMV(mv, loader, cache=cache)
    for _ in range(3):
        assert_trees_close(product(case.params), reference(case.params), atol=1e-12)
    assert loader.passes == (3 if cache == "none" else 1)
    assert product.num_samples == 9


def test_other_samples_on_a_later_pass_are_an_error():
    case, loader, mv, _ = setup(shuffle=True, limit=4)
    product = DataLoaderMV(mv, loader)
    product(case.params)
    with pytest.raises(ValueError, match=r"other samples.*cache='memory'"):
        product(case.params)


def test_a_snapshot_makes_a_shuffled_subset_one_matrix():
    case, loader, mv, _ = setup(shuffle=True, limit=4)
    product = DataLoaderMV(mv, loader, cache="memory")
    assert_trees_close(product(case.params), product(case.params), rtol=0)


def test_a_used_up_iterator_is_an_error():
    case, loader, mv, _ = setup()
    product = DataLoaderMV(mv, iter(loader))
    product(case.params)
    with pytest.raises(ValueError, match="used up"):
        product(case.params)


def test_dense_and_diagonal_read_the_loader_once(x64):
    case, loader, mv, reference = setup()
    expected = to_dense(reference, case.params)
    product = DataLoaderMV(mv, loader)
    flatten, unflatten = create_pytree_flattener(case.params)
    wrapped = wrap_function(product, input_fn=unflatten, output_fn=flatten)
    np.testing.assert_allclose(to_dense(wrapped, layout=get_size(case.params)), expected, atol=1e-12)
    assert loader.passes == 1
    np.testing.assert_allclose(diagonal(product, case.params), jnp.diagonal(expected), atol=1e-12)
    assert loader.passes == 2


def test_block_equals_single_products_in_one_pass(x64):
    case, loader, mv, reference = setup()
    vectors = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf, leaf**2]), case.params)
    product = DataLoaderMV(mv, loader)
    block = product.block(vectors)
    assert loader.passes == 1
    for i in range(3):
        single = reference(jax.tree.map(lambda leaf, i=i: leaf[i], vectors))
        assert_trees_close(jax.tree.map(lambda leaf, i=i: leaf[i], block), single, atol=1e-12)


@pytest.mark.parametrize("structure", ["full", "diagonal", "lanczos", "nystrom"])
def test_structures_over_a_loader_equal_those_over_a_batch(x64, structure):
    case, loader, mv, reference = setup()
    options = {} if structure in ("full", "diagonal") else {"rank": 18, "key": jax.random.key(1)}
    ours = create_posterior_fn(structure, mv=DataLoaderMV(mv, loader), layout=case.params, **options)
    theirs = create_posterior_fn(structure, mv=reference, layout=case.params, **options)
    v = jax.tree.map(jnp.ones_like, case.params)
    prior = {"prior_prec": 2.0}
    assert_trees_close(ours(prior).cov_mv(v), theirs(prior).cov_mv(v), atol=1e-8)


def test_tracing_through_a_loader_is_refused():
    case, loader, mv, _ = setup()
    product = DataLoaderMV(mv, loader)
    with pytest.raises(TypeError, match="cannot be traced"):
        jax.jit(product)(case.params)


def test_pairs_and_mappings_are_the_same_batch(x64):
    case, loader, mv, reference = setup()
    pairs = [(b["input"], b["target"]) for b in loader]
    assert_trees_close(DataLoaderMV(mv, pairs)(case.params), reference(case.params), atol=1e-12)
    named = [{"image": x, "label": y} for x, y in pairs]
    with pytest.raises(TypeError, match=r"keys \['image', 'label'\]"):
        DataLoaderMV(mv, named)(case.params)
    renamed = DataLoaderMV(mv, named, transform=lambda b: {"input": b["image"], "target": b["label"]})
    assert_trees_close(renamed(case.params), reference(case.params), atol=1e-12)


def test_empty_loader_is_an_error():
    case, _, mv, _ = setup()
    with pytest.raises(ValueError, match="yielded no samples"):
        DataLoaderMV(mv, [])(case.params)


def test_a_snapshot_survives_a_loader_that_reuses_its_memory(x64):
    case, loader, mv, reference = setup()

    def reusing():
        buffer = None
        for batch in loader:
            buffer = {k: np.array(v) for k, v in batch.items()} if buffer is None else buffer
            if len(batch["target"]) == len(buffer["target"]):
                for name, values in batch.items():
                    buffer[name][:] = values
                yield buffer
            else:
                yield batch

    passes = LoaderPasses(list_of := reusing(), cache="memory")
    del list_of
    passes.preload()
    total = None
    for batch in passes:
        part = mv(case.params, batch)
        total = part if total is None else jax.tree.map(jnp.add, total, part)
    assert_trees_close(total, reference(case.params), atol=1e-12)


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_a_peek_is_the_beginning_of_the_next_pass(cache):
    _, loader, _, _ = setup()
    passes = LoaderPasses(loader, cache=cache)
    first = passes.peek()
    np.testing.assert_array_equal(passes.peek().target, first.target)
    assert sum(len(batch.target) for batch in passes) == 9
    assert loader.passes == 1
    assert passes.num_samples == 9


def test_preload_reads_nothing_twice_past_the_budget():
    _, loader, _, _ = setup()
    passes = LoaderPasses(loader, cache="auto", cache_bytes=100)
    passes.preload()
    assert sum(len(batch.target) for batch in passes) == 9
    assert loader.passes == 1
    assert not passes.cached
    assert passes.num_samples == 9
    assert sum(len(batch.target) for batch in passes) == 9
    assert loader.passes == 2


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_batches_are_placed_after_they_are_checked(cache):
    _, loader, _, _ = setup()
    checked = []
    passes = LoaderPasses(
        loader,
        check=lambda number, batch: checked.append(np.array(batch.input)),
        place=lambda batch: batch._replace(input=batch.input + 1),
        cache=cache,
    )
    for _ in range(2):
        placed = np.concatenate([batch.input for batch in passes])
        np.testing.assert_array_equal(placed, loader.inputs + 1)
    np.testing.assert_array_equal(np.concatenate(checked), loader.inputs)


def test_a_batch_is_read_before_its_memory_is_written_to_again():
    def reusing():
        inputs = np.zeros((500, 20_000), np.float32)  # 40 MB: a copy that takes milliseconds
        for number in range(3):
            inputs[:] = number
            yield inputs, np.zeros(500, np.int32)

    passes = LoaderPasses(reusing(), cache="memory", cache_bytes=2**30)
    passes.preload()
    for number, batch in enumerate(passes):
        assert float(batch.input.min()) == float(batch.input.max()) == number
