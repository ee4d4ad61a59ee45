"""Models and data that many tests cross, in JAX, small enough for dense float64 references."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp

LOSSES = ("cross_entropy", "mse", "binary_cross_entropy")


def quick_jit(function: Any, **options: Any) -> Any:
    """For programs that run once, for milliseconds: half of the time to compile one goes into optimisation."""
    quick = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(function, compiler_options=quick if jax.default_backend() == "cpu" else None, **options)


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


# Models at the top of the module: compiled programs are known by the model's identity, so tests share them.
def _mlp(input, params):
    return jnp.tanh(input @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


def mlp() -> Case:
    params = {"w1": _normal(1, 4, 6), "b1": _normal(2, 6), "w2": _normal(3, 6, 3), "b2": _normal(4, 3)}
    return Case("mlp", _mlp, params, jax.random.normal(jax.random.key(0), (9, 4)), 3)


def _cnn(input, params):
    image = input.reshape(1, 6, 6, 1)
    maps = jax.lax.conv_general_dilated(
        image, params[0]["kernel"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    maps = jax.nn.softplus(maps + params[0]["bias"])
    pooled = maps.reshape(1, 2, 2, 2, 2, 2).mean((2, 4))
    return pooled.reshape(-1) @ params[1][0]


def cnn() -> Case:
    params = [{"kernel": _normal(1, 3, 3, 1, 2), "bias": _normal(2, 2)}, (_normal(3, 8, 3),)]
    return Case("cnn", _cnn, params, jax.random.normal(jax.random.key(0), (7, 6, 6)), 3)


def _attention(input, params):
    scores = (input @ params["q"]) @ (input @ params["k"]).T / 2.0
    mixed = jax.nn.softmax(scores, axis=-1) @ (input @ params["v"])
    return mixed.mean(0) @ params["out"]


def attention() -> Case:
    params = {"q": _normal(1, 4, 4), "k": _normal(2, 4, 4), "v": _normal(3, 4, 4), "out": _normal(4, 4, 2)}
    return Case("attention", _attention, params, jax.random.normal(jax.random.key(0), (6, 5, 4)), 2)


CASES = (mlp, cnn, attention)


def flatten(tree: Any) -> jax.Array:
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def unflatten(case: Case, vector: jax.Array) -> Any:
    return jax.flatten_util.ravel_pytree(case.params)[1](vector)


def _jacobian(model_fn: Any, params: Any, inputs: jax.Array) -> jax.Array:
    flat, back = jax.flatten_util.ravel_pytree(params)
    return jax.jacfwd(lambda p: jax.vmap(lambda x: model_fn(x, back(p)))(inputs))(flat)


_quick_jacobian = quick_jit(_jacobian, static_argnums=0)


def dense_jacobian(case: Case) -> jax.Array:
    """``(B, C, P)`` by JAX's own forward mode."""
    return _quick_jacobian(case.model_fn, case.params, case.inputs)


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


@functools.partial(quick_jit, static_argnums=(0, 1))
def _ggn(model_fn: Any, loss: str, params: Any, inputs: jax.Array, targets: jax.Array) -> jax.Array:
    outputs = jax.vmap(lambda x: model_fn(x, params))(inputs)
    hessians = jax.vmap(jax.hessian(sample_loss(loss)))(outputs, targets)
    jacobian = _jacobian(model_fn, params, inputs)
    return jnp.einsum("bcp,bcd,bdq->pq", jacobian, hessians, jacobian)


def dense_ggn(case: Case, loss: str) -> jax.Array:
    """The GGN by ``jax.jacfwd`` and ``jax.hessian``."""
    return _ggn(case.model_fn, loss, case.params, case.inputs, case.targets(loss))
