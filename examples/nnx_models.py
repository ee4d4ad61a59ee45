"""The same two CNNs in flax.nnx, and the way of torch's weights into them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

Params = Mapping[str, Array]


class SeedCNN(nnx.Module):
    """The tutorial's network, for one image `(28, 28, 1)`."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(1, 32, kernel_size=(3, 3), padding="VALID", rngs=rngs)
        self.conv2 = nnx.Conv(32, 32, kernel_size=(3, 3), padding="VALID", rngs=rngs)
        self.conv3 = nnx.Conv(32, 64, kernel_size=(3, 3), padding="VALID", rngs=rngs)
        self.linear = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, image: Array) -> Array:
        hidden = nnx.avg_pool(nnx.relu(self.conv1(image)), (2, 2), strides=(2, 2))
        hidden = nnx.avg_pool(nnx.relu(self.conv2(hidden)), (2, 2), strides=(2, 2))
        hidden = nnx.avg_pool(nnx.relu(self.conv3(hidden)), (3, 3))  # one pixel is left
        return self.linear(hidden.reshape(-1))


class DocsCNN(nnx.Module):
    """The network of the flax documentation, for one image `(28, 28, 1)`."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(1, 32, kernel_size=(3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(32, 64, kernel_size=(3, 3), rngs=rngs)
        self.linear1 = nnx.Linear(3136, 256, rngs=rngs)
        self.linear2 = nnx.Linear(256, 10, rngs=rngs)

    def __call__(self, image: Array) -> Array:
        hidden = nnx.avg_pool(nnx.relu(self.conv1(image)), (2, 2), strides=(2, 2))
        hidden = nnx.avg_pool(nnx.relu(self.conv2(hidden)), (2, 2), strides=(2, 2))
        hidden = hidden.transpose(2, 0, 1).reshape(-1)  # torch flattens channels first
        return self.linear2(nnx.relu(self.linear1(hidden)))


# model -> its class and, for every layer, the index that nn.Sequential gives it in torch
NNX_MODELS: dict[str, tuple[type[nnx.Module], dict[str, str]]] = {
    "seed": (SeedCNN, {"conv1": "0", "conv2": "3", "conv3": "6", "linear": "10"}),
    "nnx-docs": (DocsCNN, {"conv1": "0", "conv2": "3", "linear1": "7", "linear2": "9"}),
}


def _kernel(weight: Array) -> Array:
    """A torch weight in flax's layout: `(O, I, H, W)` to `(H, W, I, O)`, `(O, I)` to `(I, O)`."""
    return weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T


def nnx_function(name: str) -> Callable[[Array, Params], Array]:
    """`model_fn(image, params) -> logits` of an nnx model, its parameters named and laid out as in torch.

    The layout is torch's because Lanczos draws its first direction in the order of the parameters: laid out alike,
    the two ways to the same posterior go through the same Krylov space, and can be compared digit by digit.
    """
    make, layers = NNX_MODELS[name]
    graph, state = nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))

    def model_fn(input: Array, params: Params) -> Array:
        flat = {}
        for path, variable in nnx.to_flat_state(state):
            layer, part = layers[str(path[0])], path[1]
            value = _kernel(params[f"{layer}.weight"]) if part == "kernel" else params[f"{layer}.bias"]
            flat[path] = variable.replace(value)
        return nnx.merge(graph, nnx.from_flat_state(flat))(input)

    return model_fn


def as_params(weights: Mapping[str, object]) -> dict[str, Array]:
    """Weights of a state dict, given as numpy arrays, as parameters for `nnx_function`."""
    return jax.tree.map(jnp.asarray, dict(weights))
