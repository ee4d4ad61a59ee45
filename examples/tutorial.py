"""Laplace on MNIST in JAX alone: a flax.nnx CNN, `jax_core`, no torch model anywhere.

    python examples/tutorial.py
    python examples/tutorial.py --steps 400 --data-root data

Train, look at the calibration, take the curvature in two ways, reduce it, push it through the network, and look at
the calibration again. The functions below come in this order; each is one step, and each call is one that a reader
can lift into their own script.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from digits import DEFAULT_ROOT, Digits, load_digits
from flax import nnx
from jax import Array
from nnx_models import SeedCNN
from report import NUM_BINS, save_figure
from tqdm import tqdm

from jax_core import (
    DataLoaderMV,
    apply_fns,
    calculate_bin_metrics,
    correctness,
    create_ggn_mv,
    create_ggn_mv_without_data,
    create_posterior_fn,
    create_proportion_diagram,
    create_pytree_flattener,
    create_reliability_diagram,
    evaluate_metrics_on_generator,
    expected_calibration_error,
    get_size,
    lin_mc_pred_act,
    lin_pred_mean,
    lin_setup,
    reduce_add,
    set_lin_pushforward,
    to_dense,
    transfer_entry,
    wrap_function,
)

BATCH_SIZE = 32
CURVATURE_BATCHES = 4
TEST_BATCH_SIZE = 250
RANK = 100
PRIOR_PRECISION = 10_000.0
NUM_SAMPLES = 30

Batch = dict[str, np.ndarray]
ModelFn = Callable[[Array, Any], Array]


def batches(images: np.ndarray, labels: np.ndarray, size: int) -> list[Batch]:
    """The data in order, in batches; a list, so that every pass over it sees the same."""
    starts = range(0, len(labels), size)
    return [{"input": images[i : i + size], "target": labels[i : i + size]} for i in starts]


def shuffled_batches(digits: Digits, steps: int, rng: np.random.Generator) -> Iterator[Batch]:
    """Random batches for training."""
    epoch = len(digits.train_labels) // BATCH_SIZE
    for step in range(steps):
        if step % epoch == 0:
            order = rng.permutation(len(digits.train_labels))
        index = order[step % epoch * BATCH_SIZE :][:BATCH_SIZE]
        yield {"input": digits.train_images[index], "target": digits.train_labels[index]}


# ------------------------------------------------------------------------------------------------ 1. a trained network


def cross_entropy(model: SeedCNN, batch: Batch) -> Array:
    logits = nnx.vmap(lambda network, image: network(image), in_axes=(None, 0))(model, batch["input"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["target"]).mean()


@nnx.jit
def train_step(model: SeedCNN, optimizer: nnx.Optimizer, batch: Batch) -> None:
    optimizer.update(model, nnx.grad(cross_entropy)(model, batch))


def train(digits: Digits, *, steps: int, seed: int, quiet: bool) -> SeedCNN:
    model = SeedCNN(rngs=nnx.Rngs(seed))
    optimizer = nnx.Optimizer(model, optax.adamw(3e-4, b1=0.9), wrt=nnx.Param)
    stream = shuffled_batches(digits, steps, np.random.default_rng(seed))
    for batch in tqdm(stream, "train", steps, disable=quiet):
        train_step(model, optimizer, batch)
    return model


def as_function(model: SeedCNN) -> tuple[ModelFn, Any]:
    """A network as `model_fn(input, params)` for one input, and its parameters as a pytree."""
    graph, params = nnx.split(model)

    def model_fn(input: Array, params: Any) -> Array:
        return nnx.merge(graph, params)(input)

    return model_fn, params


# ------------------------------------------------------------------------------------------------- 2. its curvature


def curvature(model_fn: ModelFn, params: Any, digits: Digits) -> DataLoaderMV:
    """The GGN of the training loss as a product with vectors, from a few batches scaled to the whole set."""
    few = batches(digits.train_images, digits.train_labels, BATCH_SIZE)[:CURVATURE_BATCHES]
    total = len(digits.train_labels)

    # of one batch ...
    of_one_batch = create_ggn_mv(model_fn, params, few[0], loss_fn="cross_entropy", num_total_samples=total)
    # ... or of a loader: the data come in when the product is taken
    seen = sum(len(batch["target"]) for batch in few)
    product = create_ggn_mv_without_data(model_fn, params, loss_fn="cross_entropy", factor=total / seen)
    of_a_loader = DataLoaderMV(product, few, reduce=reduce_add)

    along = {name: quadratic_form(mv, params) for name, mv in (("batch", of_one_batch), ("loader", of_a_loader))}
    print(f"curvature along the weights: one batch {along['batch']:.4g}, {len(few)} batches {along['loader']:.4g}")
    return of_a_loader


def quadratic_form(mv: Callable[[Any], Any], vector: Any) -> float:
    products = jax.tree.map(jnp.vdot, vector, mv(vector))
    return float(sum(jax.tree.leaves(products)))


def dense_curvature_of_a_small_model(digits: Digits) -> Array:
    """Where the GGN fits into memory it can be written out: here of a linear model on 4 x 4 pixels."""
    params = {"w": jnp.zeros((16, 10)), "b": jnp.zeros(10)}

    def model_fn(input: Array, params: Any) -> Array:
        coarse = input.reshape(4, 7, 4, 7).mean(axis=(1, 3))
        return coarse.reshape(-1) @ params["w"] + params["b"]

    few = batches(digits.train_images, digits.train_labels, BATCH_SIZE)[:CURVATURE_BATCHES]
    mv = DataLoaderMV(create_ggn_mv_without_data(model_fn, params, loss_fn="cross_entropy", factor=1.0), few)
    flatten, unflatten = create_pytree_flattener(params)
    return to_dense(wrap_function(mv, input_fn=unflatten, output_fn=flatten), layout=get_size(params))


# ----------------------------------------------------------------------------------------------- 3. its predictive


def confidence_of_logits(map_: Array) -> Array:
    return jax.nn.softmax(map_, axis=-1).max(axis=-1)


def confidence_of_probabilities(pred_act: Array) -> Array:
    return pred_act.max(axis=-1)


METRICS = (
    transfer_entry(["map", "pred_mean", "mc_pred_act"]),
    apply_fns(
        confidence_of_logits,
        confidence_of_probabilities,
        names=["confidence_map", "confidence_laplace"],
        map_="map",
        pred_act="mc_pred_act",
    ),
    apply_fns(correctness, names=["correct_map"], pred="map", target="target"),
    apply_fns(correctness, names=["correct_laplace"], pred="mc_pred_act", target="target"),
)


def evaluate_both_ways(predict: Callable[[Array], Any], loader: Sequence[Batch], *, quiet: bool) -> dict[str, Array]:
    """Evaluate the predictive written for one input, and mapped over a batch by hand: the same numbers."""
    evaluate = partial(evaluate_metrics_on_generator, metrics=METRICS, reduce=jnp.concatenate)
    singly = evaluate(jax.jit(predict), tqdm(loader, "evaluate", disable=quiet), vmap_over_data=True)
    batched_predict = jax.jit(jax.vmap(predict))
    batched = evaluate(batched_predict, tqdm(loader, "evaluate again", disable=quiet), vmap_over_data=False)
    gap = max(float(jnp.abs(singly[n] - batched[n]).max()) for n in ("confidence_map", "confidence_laplace"))
    print(f"largest difference between the two evaluations: {gap:.1e}")
    if gap > 1e-6:
        raise AssertionError(f"The two evaluations differ by {gap:.1e}, more than 1e-6.")
    return singly


def report(results: dict[str, Array], out: Path) -> None:
    """The four figures, and both diagrams for both predictions."""
    out.mkdir(parents=True, exist_ok=True)
    for name, title in (("map", "MAP"), ("laplace", "Laplace")):
        confidence, correct = results[f"confidence_{name}"], results[f"correct_{name}"]
        ece = expected_calibration_error(confidence=confidence, correctness=correct, num_bins=NUM_BINS)
        print(f"{title:8} ECE {ece:.4f}   accuracy {correct.mean():.4f}")
        bins = calculate_bin_metrics(confidence=confidence, correctness=correct, num_bins=NUM_BINS)
        reliability = create_reliability_diagram(
            bin_confidences=bins.confidences, bin_accuracies=bins.accuracies, num_bins=NUM_BINS, title=title
        )
        save_figure(reliability.figure, out / f"reliability_{name}.png")
        proportions = create_proportion_diagram(bin_proportions=bins.proportions, num_bins=NUM_BINS, title=title)
        save_figure(proportions.figure, out / f"proportions_{name}.png")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2_200, help="training steps, batches of 32")
    parser.add_argument("--data-root", type=Path, default=DEFAULT_ROOT, help="where torchvision's MNIST is or goes to")
    parser.add_argument("--out", type=Path, default=Path("results/tutorial"), help="where the figures go to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    digits = load_digits(args.data_root)
    print(digits.source)

    model_fn, params = as_function(train(digits, steps=args.steps, seed=args.seed, quiet=args.quiet))
    print(f"{get_size(params):,} parameters: a dense GGN would have {get_size(params) ** 2:,} entries")

    mv = curvature(model_fn, params, digits)
    small = dense_curvature_of_a_small_model(digits)
    print(f"dense GGN of a small linear model: {small.shape}, rank {int(jnp.linalg.matrix_rank(small))}")

    posterior_fn = create_posterior_fn(
        "lanczos", mv=mv, layout=params, key=jax.random.key(args.seed), maxiter=RANK, progress=not args.quiet
    )
    predict = set_lin_pushforward(
        model_fn=model_fn,
        mean_params=params,
        posterior_fn=posterior_fn,
        prior_arguments={"prior_prec": PRIOR_PRECISION},
        pushforward_fns=[lin_setup, lin_pred_mean, lin_mc_pred_act],
        key=jax.random.key(args.seed),
        num_samples=NUM_SAMPLES,
    )
    loader = batches(digits.test_images, digits.test_labels, TEST_BATCH_SIZE)
    report(evaluate_both_ways(predict, loader, quiet=args.quiet), args.out)
    print(f"figures in {args.out}")


if __name__ == "__main__":
    main()
