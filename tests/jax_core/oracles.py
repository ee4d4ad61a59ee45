"""Small torch models and their traced twins, so that libraries written in torch can judge the core."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

import bridge
from jax_core.data.trees import flattener

SAMPLES, OUTPUTS = 7, 3


class Attention(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(3, 3, bias=False) for _ in range(3))
        # no weights: torch differentiates theirs wrongly forward over reverse (2.14), and its Hessian is not symmetric
        self.norm, self.head = nn.LayerNorm(3, elementwise_affine=False), nn.Linear(3, outputs)

    def forward(self, x):  # (B, T, 3)
        scores = self.query(x) @ self.key(x).mT / 3**0.5
        mixed = x + scores.softmax(-1) @ self.value(x)
        return self.head(self.norm(mixed).mean(1))


def _mlp(outputs):
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs))


def _cnn(outputs):
    first = (nn.Conv2d(1, 2, 3), nn.Tanh(), nn.MaxPool2d(2))  # (B, 2, 2, 2)
    return nn.Sequential(*first, nn.Conv2d(2, outputs, 2), nn.Flatten())


_MAKE = {"mlp": (_mlp, (4,)), "cnn": (_cnn, (1, 6, 6)), "attention": (Attention, (4, 3))}
MODELS = tuple(_MAKE)


@dataclass(frozen=True, eq=False)
class Twin:
    """A torch model in float64 and the same function in JAX.

    ``order`` sorts torch's concatenated parameters into the core's flat layout.
    """

    model: nn.Module
    inputs: torch.Tensor
    traced: bridge.TracedModel
    order: np.ndarray

    @property
    def params(self):
        return self.traced.params

    def model_fn(self, input, params):
        return self.traced.apply(params, input[None])[0]

    def dense(self, mv):
        """The matrix of a product, in the core's flat layout."""
        flatten, unflatten = flattener(self.params)
        return jax.vmap(lambda row: flatten(mv(unflatten(row))), out_axes=1)(jnp.eye(len(self.order)))

    def targets(self, loss):
        generator = torch.Generator().manual_seed(2)
        if loss == "cross_entropy":
            return torch.randint(OUTPUTS, (len(self.inputs),), generator=generator)
        values = torch.randn(len(self.inputs), OUTPUTS, generator=generator, dtype=torch.float64)
        return values if loss == "mse" else (values > 0).double()

    def data(self, loss):
        return {"input": jnp.asarray(self.inputs.numpy()), "target": jnp.asarray(self.targets(loss).numpy())}

    def batches(self, loss):
        """The same data for torch, in two batches of different size."""
        return list(zip(self.inputs.split(4), self.targets(loss).split(4), strict=True))

    def sort(self, values):
        """Values along torch's concatenated parameters (every axis of that length), in the core's layout."""
        values = torch.as_tensor(values).detach().numpy()
        for axis, length in enumerate(values.shape):
            values = values.take(self.order, axis) if length == len(self.order) else values
        return values


@functools.cache
def twin(name):
    """Made once: tracing takes seconds, and compiled programs are known by the model's identity."""
    make, shape = _MAKE[name]
    torch.manual_seed(0)
    model = make(OUTPUTS).double()
    inputs = torch.randn(SAMPLES, *shape, dtype=torch.float64)
    with jax.enable_x64(True):
        traced = bridge.trace(model, inputs[:2])
        ends = np.cumsum([p.numel() for p in model.parameters()])
        named = {
            name: np.arange(end - p.numel(), end).reshape(p.shape)
            for (name, p), end in zip(model.named_parameters(), ends, strict=True)
        }
        order = np.asarray(flattener(named)[0](named))
    return Twin(model, inputs, traced, order)


def torch_loss(loss, reduction="sum"):
    modules = {"cross_entropy": nn.CrossEntropyLoss, "mse": nn.MSELoss, "binary_cross_entropy": nn.BCEWithLogitsLoss}
    return modules[loss](reduction=reduction)
