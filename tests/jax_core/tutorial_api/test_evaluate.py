"""Metrics over a loader: both modes, all forms of a batch, and laplax as a witness."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_core.tutorial_api import apply_fns, correctness, evaluate_metrics_on_generator, transfer_entry

WEIGHTS = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)


def predict(x):
    logits = x @ WEIGHTS
    return {"map": logits, "pred": jax.nn.softmax(logits / 2)}


def batches(sizes=(8, 8, 5)):
    rng = np.random.default_rng(1)
    return [{"input": rng.normal(size=(n, 6)).astype(np.float32), "target": rng.integers(0, 4, n)} for n in sizes]


def confidence(pred, **entries):
    return pred.max(axis=-1)


STEPS = (
    transfer_entry(["map"]),
    apply_fns(confidence, correctness, names=["confidence", "right"], pred="pred", target="target"),
)


def evaluate(loader, function=predict, **options):
    return evaluate_metrics_on_generator(function, loader, metrics=STEPS, reduce=jnp.concatenate, **options)


def test_functions_of_a_sample_and_of_a_batch_give_the_same():
    def of_a_sample(x):
        assert x.shape == (6,)
        return predict(x)

    def of_a_batch(x):
        assert x.shape[1:] == (6,)
        return predict(x)

    singly = evaluate(batches(), of_a_sample, vmap_over_data=True)
    batched = evaluate(batches(), of_a_batch, vmap_over_data=False)
    assert singly.keys() == {"map", "confidence", "right"} and singly["map"].shape == (21, 4)
    for name in singly:
        np.testing.assert_allclose(singly[name], batched[name], atol=1e-6)


def test_results_equal_laplax():
    from laplax.eval import utils as laplax
    from laplax.eval.metrics import correctness as laplax_correctness

    steps = [
        laplax.transfer_entry(["map"]),
        laplax.apply_fns(confidence, laplax_correctness, names=["confidence", "right"], pred="pred", target="target"),
    ]
    theirs = laplax.evaluate_metrics_on_generator(predict, batches(), metrics=steps, reduce=jnp.concatenate)
    mine = evaluate(batches())
    assert mine.keys() == theirs.keys()
    for name in mine:
        np.testing.assert_allclose(mine[name], theirs[name], atol=1e-6)


def test_pairs_mappings_and_transformed_items_are_the_same_batches():
    expected = evaluate(batches())
    pairs = evaluate([(b["input"], b["target"]) for b in batches()])
    transformed = evaluate(
        [{"x": b["input"], "y": b["target"]} for b in batches()], transform=lambda b: (b["x"], b["y"])
    )
    for other in (pairs, transformed):
        np.testing.assert_array_equal(expected["map"], other["map"])


def test_batches_of_one_shape_are_traced_once():
    traces = []

    def traced(x):
        traces.append(x.shape)
        return predict(x)

    evaluate(batches((8, 8, 8, 8)), traced)
    assert len(traces) == 1


def test_without_reduce_the_outcomes_stay_a_list_per_batch():
    results = evaluate_metrics_on_generator(predict, batches(), metrics=STEPS)
    assert [values.shape for values in results["right"]] == [(8,), (8,), (5,)]


def test_empty_loader_gives_no_results():
    assert evaluate([]) == {}


def test_unknown_batch_is_refused():
    with pytest.raises(TypeError, match="mapping with 'input' and 'target'"):
        evaluate([np.zeros((3, 6))])


def test_steps_read_what_earlier_steps_made_and_leave_their_arguments_alone():
    first = apply_fns(lambda x: x**2, names=["square"], field="aux", x="map")
    second = apply_fns(lambda x: x**0.5, names=["root"], x="square")
    results, aux = {}, {"map": jnp.asarray(3.0)}
    kept, extended = first(results=results, aux=aux)
    assert results == {} and kept == {} and set(aux) == {"map"} and set(extended) == {"map", "square"}
    assert second(results=kept, aux=extended)[0] == {"root": 3.0}


def test_transfer_renames_in_both_directions():
    step = transfer_entry({"logits": "map"})
    assert step(results={}, aux={"map": 1})[0] == {"logits": 1}
    back = transfer_entry(["logits"], field="aux", access_from="results")
    assert back(results={"logits": 2}, aux={})[1] == {"logits": 2}


def test_functions_get_only_the_arguments_that_they_name():
    step = apply_fns(lambda a: a, lambda b: b, lambda **all_: sorted(all_), names=["a", "b", "all"], a="x", b="y")
    assert step(results={}, aux={"x": 1, "y": 2})[0] == {"a": 1, "b": 2, "all": ["a", "b"]}


def test_names_default_to_those_of_the_functions():
    assert apply_fns(correctness, pred="p", target="t")(results={}, aux={"p": jnp.eye(2), "t": jnp.arange(2)})[
        0
    ].keys() == {"correctness"}


@pytest.mark.usefixtures("unchecked_annotations")
def test_mistakes_are_named_before_any_work():
    with pytest.raises(TypeError, match=r"'prd'.*misspelt"):
        apply_fns(correctness, prd="map", target="target")
    with pytest.raises(ValueError, match="1 names for 2 functions"):
        apply_fns(correctness, confidence, names=["right"], pred="map")
    with pytest.raises(TypeError, match="not 3"):
        apply_fns(3, names=["three"])
    with pytest.raises(ValueError, match="'result'"):
        transfer_entry(["map"], field="result")
    with pytest.raises(ValueError, match="'result'"):
        apply_fns(correctness, field="result", pred="map", target="target")


def test_missing_entry_is_named_with_what_there_is():
    with pytest.raises(KeyError, match="'mapp' among \\['map', 'pred', 'target'\\]"):
        evaluate_metrics_on_generator(predict, batches(), metrics=[transfer_entry(["mapp"])])
