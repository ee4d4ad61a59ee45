"""Inputs by their shapes and types alone: enough to trace a model again, and nothing of the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

Kind = Literal["tensor", "tuple", "mapping"]


@dataclass(frozen=True)
class InputTemplate:
    """One sample's inputs.

    Attributes:
        kind: How a model takes them: one tensor, several, or by keyword.
        names: Of each tensor; its number where there is no keyword.
        shapes: Of each tensor, without the batch axis.
        dtypes: Of each tensor, as torch names them (``"float32"``).
    """

    kind: Kind
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]

    @classmethod
    def of(cls, inputs: Any) -> InputTemplate:
        """From a batch of inputs.

        Raises:
            TypeError: If inputs nest deeper than one tuple, list or mapping.
        """
        if isinstance(inputs, torch.Tensor):
            kind, named = "tensor", {"0": inputs}
        elif isinstance(inputs, Mapping):
            kind, named = "mapping", dict(inputs)
        else:
            kind, named = "tuple", {str(i): tensor for i, tensor in enumerate(inputs)}
        odd = [name for name, tensor in named.items() if not isinstance(tensor, torch.Tensor)]
        if odd:
            raise TypeError(
                f"Input {odd[0]} is a {type(named[odd[0]]).__name__}. Give one tensor, a tuple of tensors or a mapping "
                "of them; to_batch= can bring others into that form."
            )
        shapes = tuple(tuple(tensor.shape[1:]) for tensor in named.values())
        dtypes = tuple(str(tensor.dtype).removeprefix("torch.") for tensor in named.values())
        return cls(kind, tuple(named), shapes, dtypes)

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> InputTemplate:
        """From the lists that a file holds in the place of tuples."""
        shapes = tuple(tuple(shape) for shape in record["shapes"])
        return cls(record["kind"], tuple(record["names"]), shapes, tuple(record["dtypes"]))

    def example(self, count: int = 2) -> Any:
        """A batch of made-up inputs in these shapes: small normal numbers, zeros where they are whole."""
        generator = torch.Generator().manual_seed(0)
        made = []
        for shape, name in zip(self.shapes, self.dtypes, strict=True):
            dtype = getattr(torch, name)
            full = (count, *shape)
            floating = dtype.is_floating_point
            made.append(
                torch.randn(full, generator=generator).to(dtype) if floating else torch.zeros(full, dtype=dtype)
            )
        return self.nest(made)

    def nest(self, tensors: list[torch.Tensor]) -> Any:
        """Tensors as the model takes them."""
        if self.kind == "mapping":
            return dict(zip(self.names, tensors, strict=True))
        return tensors[0] if self.kind == "tensor" else tuple(tensors)
