"""The order of parameters: torch's, in which users count, and that of sorted names, in which JAX flattens them."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import nn
from torch.nn.parameter import is_lazy

from bridge.tracing.checks import unwrap


@dataclass(frozen=True)
class ParameterOrder:
    """The parameters that a posterior covers, in the order of ``model.parameters()``.

    Attributes:
        names: Torch's names; tied parameters once, by their first name.
        shapes: Their shapes.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, model: nn.Module, names: Collection[str] | None = None) -> ParameterOrder:
        """The parameters with ``requires_grad=True``, or those among some names.

        Raises:
            ValueError: If there are none, or one has no shape yet.
        """
        lazy = [name for name, p in unwrap(model).named_parameters() if is_lazy(p)]
        if lazy:
            raise ValueError(f"{lazy[0]} of a lazy module has no shape yet. Run the model once on a batch first.")
        trained = {name: tuple(p.shape) for name, p in unwrap(model).named_parameters() if p.requires_grad}
        covered = {name: shape for name, shape in trained.items() if names is None or name in names}
        if names is not None and not covered:
            held = ", ".join(sorted(names)) or "none"
            raise ValueError(
                f"What is to be covered has no parameter with requires_grad=True (it holds {held}), so there is "
                "nothing to be uncertain about. Name others with last_layer_name= or in the list of subset_of_weights=."
            )
        if not covered:
            raise ValueError(
                "The model has no parameter with requires_grad=True, so there is nothing to be uncertain about. Set it "
                "on the parameters that the posterior should cover."
            )
        return cls(tuple(covered), tuple(covered.values()))

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(self.sizes)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Numbers in each tensor."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @cached_property
    def _tensors(self) -> np.ndarray:
        """For each tensor in JAX's order its place in torch's."""
        return np.array(sorted(range(len(self.names)), key=lambda i: self.names[i]), int)

    @cached_property
    def _numbers(self) -> np.ndarray:
        """For each parameter in JAX's order its place in torch's."""
        parts = np.split(np.arange(self.size), np.cumsum(self.sizes)[:-1])
        return np.concatenate([parts[i] for i in self._tensors])

    @property
    def core_places(self) -> np.ndarray:
        """For each weight in JAX's order its place in torch's."""
        return self._numbers

    @cached_property
    def places_in_core(self) -> np.ndarray:
        """For each weight in torch's order its place in JAX's."""
        return np.argsort(self._numbers)

    def _places(self, length: int) -> np.ndarray:
        return self._tensors if length == len(self.names) else self._numbers

    def to_core(self, values: np.ndarray) -> np.ndarray:
        """Values per tensor or per parameter, along the last axis, in the order in which the core has them."""
        return values[..., self._places(values.shape[-1])]

    def to_torch(self, values: np.ndarray) -> np.ndarray:
        """The inverse of :meth:`to_core`."""
        return values[..., np.argsort(self._places(values.shape[-1]))]
