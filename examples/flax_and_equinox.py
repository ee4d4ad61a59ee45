"""The JAX core alone, for a flax.nnx and for an equinox network: no torch in sight. Offline, half a minute.

The core asks for ``model_fn(input, params)`` of one example, with parameters in any pytree. How a library's module
becomes that is one line each; everything after is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pictures
from flax import nnx
from matplotlib import pyplot as plt

from jax_core import (
    Categorical,
    FitOptions,
    LoaderPasses,
    Posterior,
    fit_curvature,
    linearized_predictive,
    nll_categorical,
    predictive_entropy,
    probit,
)

ModelFn = Callable[[jax.Array, Any], jax.Array]


class FlaxNetwork(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first, self.last = nnx.Linear(2, 32, rngs=rngs), nnx.Linear(32, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(jnp.tanh(self.first(x)))


def from_flax() -> tuple[ModelFn, Any]:
    graph, params = nnx.split(FlaxNetwork(nnx.Rngs(0)), nnx.Param)
    return lambda input, params: nnx.merge(graph, params)(input), params


def from_equinox() -> tuple[ModelFn, Any]:
    network = eqx.nn.MLP(2, 2, width_size=32, depth=1, activation=jnp.tanh, key=jax.random.key(0))
    params, rest = eqx.partition(network, eqx.is_array)
    return lambda input, params: eqx.combine(params, rest)(input), params


def moons(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Places in the plane, and on which of two half circles they lie."""
    drawn = np.random.default_rng(seed)
    label, angle = drawn.integers(2, size=count), drawn.uniform(0, np.pi, count)
    places = np.stack([np.cos(angle) * (1 - 2 * label) + label, np.sin(angle) * (1 - 2 * label) + 0.5 * label], 1)
    return (places + 0.3 * drawn.normal(size=places.shape)).astype(np.float32), label.astype(np.int32)


def trained(model_fn: ModelFn, params: Any, x: np.ndarray, y: np.ndarray, steps: int) -> Any:
    optimizer = optax.adamw(1e-2, weight_decay=0.1)

    def loss(params: Any) -> jax.Array:
        logits = jax.vmap(model_fn, (0, None))(x, params)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params


def laplace(model_fn: ModelFn, params: Any, x: np.ndarray, y: np.ndarray, prior_precision: float) -> Callable:
    """From data to the function that gives probabilities."""
    batches = [(x[i : i + 50], y[i : i + 50]) for i in range(0, len(y), 50)]
    options = FitOptions(structure="full", progress=False)
    fitted = fit_curvature(
        model_fn, params, Categorical(), LoaderPasses(batches), options, key=jax.random.key(0), num_total_samples=len(y)
    )
    posterior = Posterior.create(params, fitted.curvature, jnp.asarray(prior_precision))
    predictive = linearized_predictive(model_fn, posterior)

    def predict(x: np.ndarray) -> jax.Array:
        outputs = predictive(jnp.asarray(x))
        return probit(outputs.mean, outputs.covariance)

    return predict


def main(count: int = 100, steps: int = 500, folder: Path = pictures.RESULTS) -> dict[str, tuple[float, float]]:
    (x, y), (test_x, test_y) = moons(count, seed=0), moons(1_000, seed=1)
    found, maps = {}, {}
    print(f"{'library':10}{'network: NLL':>14}{'Laplace: NLL':>14}")
    for library, made in (("flax.nnx", from_flax), ("equinox", from_equinox)):
        model_fn, params = made()
        params = trained(model_fn, params, x, y, steps)
        predict = laplace(model_fn, params, x, y, prior_precision=1.0)
        network = jax.nn.softmax(jax.vmap(model_fn, (0, None))(test_x, params))
        found[library] = float(nll_categorical(network, test_y)), float(nll_categorical(predict(test_x), test_y))
        maps[library] = predict
        print("{:10}{:14.3f}{:14.3f}".format(library, *found[library]))
    draw(maps, x, y, folder)
    mistake()
    return found


def draw(maps: dict[str, Callable], x: np.ndarray, y: np.ndarray, folder: Path, side: int = 60) -> None:
    axis = np.linspace(-3, 4, side, dtype=np.float32)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained", sharey=True)
    for ax, (library, predict) in zip(axes, maps.items(), strict=True):
        entropy = np.asarray(predictive_entropy(predict(grid))).reshape(side, side)
        shown = ax.pcolormesh(axis, axis, entropy, cmap="cividis", vmin=0, vmax=0.7, rasterized=True)
        for label, colour in ((0, pictures.ORANGE), (1, "white")):
            ax.plot(*x[y == label].T, ".", color=colour, markeredgecolor="black", markeredgewidth=0.3)
        ax.set(title=library, xlabel="first input", aspect="equal")
    axes[0].set_ylabel("second input")
    figure.colorbar(shown, ax=axes, label="entropy of the prediction (nats)")
    pictures.save(figure, folder, "flax_and_equinox")


def mistake() -> None:
    """A way to a low rank for a structure that has none."""
    try:
        FitOptions(structure="kron", method="lanczos")
    except ValueError as error:
        print(f"\nA method that the structure does not use:\n  {error}")


if __name__ == "__main__":
    main(folder=pictures.folder())
