"""Models and data that many tests cross, in JAX, small enough for dense float64 references."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp

LOSSES = ("cross_entropy", "mse", "binary_cross_entropy")


@dataclass(frozen=True)
class Case:
    """A model of one example, its parameters and a batch."""

    name: str
    model_fn: Any
    params: Any
    inputs: jax.Array
    classes: int

    def targets(self, loss: str, key: int = 7) -> jax.Array:
        shape = (self.inputs.shape[0], self.classes)
        if loss == "cross_entropy":
            return jax.random.randint(jax.random.key(key), shape[:1], 0, self.classes)
        if loss == "binary_cross_entropy":
            return jax.random.bernoulli(jax.random.key(key), 0.4, shape).astype(float)
        return jax.random.normal(jax.random.key(key), shape)

    def data(self, loss: str) -> dict[str, jax.Array]:
        return {"input": self.inputs, "target": self.targets(loss)}


def _normal(key: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(key), shape) / max(1, shape[0]) ** 0.5


def mlp() -> Case:
    params = {"w1": _normal(1, 4, 6), "b1": _normal(2, 6), "w2": _normal(3, 6, 3), "b2": _normal(4, 3)}

    def model(input, params):
        return jnp.tanh(input @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]

    return Case("mlp", model, params, jax.random.normal(jax.random.key(0), (9, 4)), 3)


def cnn() -> Case:
    params = [{"kernel": _normal(1, 3, 3, 1, 2), "bias": _normal(2, 2)}, (_normal(3, 8, 3),)]

    def model(input, params):
        image = input.reshape(1, 6, 6, 1)
        maps = jax.lax.conv_general_dilated(
            image, params[0]["kernel"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        maps = jax.nn.softplus(maps + params[0]["bias"])
        pooled = maps.reshape(1, 2, 2, 2, 2, 2).mean((2, 4))
        return pooled.reshape(-1) @ params[1][0]

    return Case("cnn", model, params, jax.random.normal(jax.random.key(0), (7, 6, 6)), 3)


def attention() -> Case:
    params = {"q": _normal(1, 4, 4), "k": _normal(2, 4, 4), "v": _normal(3, 4, 4), "out": _normal(4, 4, 2)}

    def model(input, params):
        scores = (input @ params["q"]) @ (input @ params["k"]).T / 2.0
        mixed = jax.nn.softmax(scores, axis=-1) @ (input @ params["v"])
        return mixed.mean(0) @ params["out"]

    return Case("attention", model, params, jax.random.normal(jax.random.key(0), (6, 5, 4)), 2)


CASES = (mlp, cnn, attention)


def flatten(tree: Any) -> jax.Array:
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def unflatten(case: Case, vector: jax.Array) -> Any:
    return jax.flatten_util.ravel_pytree(case.params)[1](vector)


def dense_jacobian(case: Case) -> jax.Array:
    """``(B, C, P)`` by JAX's own forward mode."""
    flat, back = jax.flatten_util.ravel_pytree(case.params)
    return jax.jacfwd(lambda p: jax.vmap(lambda x: case.model_fn(x, back(p)))(case.inputs))(flat)


def sample_loss(loss: str):
    """The loss of one sample, written out independently."""

    def cross_entropy(f, y):
        return jnp.log(jnp.exp(f).sum()) - f[y]

    def mse(f, y):
        return 0.5 * ((f - y) ** 2).sum()

    def binary(f, y):
        p = 1 / (1 + jnp.exp(-f))
        return -(y * jnp.log(p) + (1 - y) * jnp.log(1 - p)).sum()

    return {"cross_entropy": cross_entropy, "mse": mse, "binary_cross_entropy": binary}[loss]


def dense_ggn(case: Case, loss: str) -> jax.Array:
    """The GGN by ``jax.jacfwd`` and ``jax.hessian``."""
    outputs = jax.vmap(lambda x: case.model_fn(x, case.params))(case.inputs)
    hessians = jax.vmap(jax.hessian(sample_loss(loss)))(outputs, case.targets(loss))
    jacobian = dense_jacobian(case)
    return jnp.einsum("bcp,bcd,bdq->pq", jacobian, hessians, jacobian)
