"""How a model's outputs lie: as torch has them, and as the core has them, with classes last."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch


@dataclass(frozen=True)
class OutputLayout:
    """The shape of one sample's outputs.

    Attributes:
        shape: As the model has it, without the batch axis.
        class_axis: Where the classes are, counted in the batch as torch counts (1 for ``nn.CrossEntropyLoss``);
            ``None`` for the last axis.
        of_one: The shape that the model gives for a batch of one, where ``squeeze()`` has taken the batch axis too.
    """

    shape: tuple[int, ...]
    class_axis: int | None = None
    of_one: tuple[int, ...] | None = None

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> OutputLayout:
        """From the lists that a file holds in the place of tuples."""
        of_one = record["of_one"]
        return cls(tuple(record["shape"]), record["class_axis"], None if of_one is None else tuple(of_one))

    @property
    def moved(self) -> bool:
        """Whether the core has the axes in another order."""
        return self.class_axis is not None and len(self.shape) > 1 and self.class_axis != len(self.shape)

    @property
    def core_shape(self) -> tuple[int, ...]:
        """One sample's, classes last."""
        if not self.moved:
            return self.shape
        rest = [n for axis, n in enumerate(self.shape, 1) if axis != self.class_axis]
        return (*rest, self.shape[self._class_axis - 1])

    @property
    def size(self) -> int:
        """Scalar outputs of one sample."""
        return math.prod(self.shape)

    @property
    def order(self) -> np.ndarray:
        """For each of a sample's outputs as the model flattens them, where it lies among the core's."""
        places = np.arange(self.size).reshape(1, *self.core_shape)
        return (np.moveaxis(places, -1, self._class_axis) if self.moved else places).reshape(-1)

    @property
    def _class_axis(self) -> int:
        return len(self.shape) if self.class_axis is None else self.class_axis

    def to_core(self, outputs: jax.Array) -> jax.Array:
        """``(B, *shape)`` with classes last."""
        return jnp.moveaxis(outputs, self._class_axis, -1) if self.moved else outputs

    def covariance_to_model(self, covariance: jax.Array, *axes: int) -> jax.Array:
        """A covariance whose ``axes`` run over the core's flattened outputs, in the order of the model's."""
        for axis in axes if self.moved else ():
            covariance = jnp.take(covariance, self.order, axis=axis)
        return covariance

    def to_model(self, values: jax.Array, *, lead: int = 1) -> jax.Array:
        """The core's values behind ``lead`` axes, flattened or not, in the model's shape."""
        whole = values.reshape(*values.shape[:lead], *self.core_shape)
        return jnp.moveaxis(whole, -1, lead + self._class_axis - 1) if self.moved else whole


def single_output(outputs: Any) -> Any:
    """The one tensor of outputs that a likelihood is about; of what Hugging Face's models return, the logits.

    A tuple or list of one tensor, as those models return with ``return_dict=False``, is that tensor.

    Raises:
        TypeError: If the model returns several tensors.
    """
    if isinstance(outputs, jax.Array | torch.Tensor):
        return outputs
    if isinstance(outputs, tuple | list) and len(outputs) == 1 and isinstance(outputs[0], jax.Array | torch.Tensor):
        return outputs[0]
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    if isinstance(logits, jax.Array | torch.Tensor):
        return logits
    raise TypeError(
        f"The model returns {type(outputs).__name__}; a likelihood needs one tensor of outputs per batch. Wrap "
        "the model in a module whose forward returns that tensor."
    )
