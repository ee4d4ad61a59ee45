"""Inputs by their shapes and types alone: enough to trace a model again, and nothing of the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from bridge.arguments import as_tensor, is_array
from bridge.padding import Padding
from jax_core.data.batches import Batch

Kind = Literal["tensor", "tuple", "mapping", "one list", "one tuple", "one mapping"]
_ONE: dict[type, Kind] = {list: "one list", tuple: "one tuple", dict: "one mapping"}


@dataclass(frozen=True)
class InputTemplate:
    """One sample's inputs.

    Attributes:
        kind: How a model takes them: one tensor, several, by keyword, or all in one list, tuple or mapping.
        names: Of each tensor; its number where there is no keyword.
        shapes: Of each tensor, without the batch axis.
        dtypes: Of each tensor, as torch names them (``"float32"``).
        padding: What fills shorter sequences up, where there is an attention mask.
    """

    kind: Kind
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    padding: Padding | None = None

    @classmethod
    def of(cls, inputs: Any) -> InputTemplate:
        """From a batch of inputs as :func:`~bridge.arguments.as_taken` gives them.

        Raises:
            TypeError: If inputs nest deeper than one tuple, list or mapping.
        """
        if isinstance(inputs, torch.Tensor):
            kind, held = "tensor", [inputs]
        elif isinstance(inputs, Mapping):
            kind, held = "mapping", inputs
        elif len(inputs) == 1 and type(inputs[0]) in _ONE:
            kind, held = _ONE[type(inputs[0])], inputs[0]
        else:
            kind, held = "tuple", inputs
        named = dict(held) if isinstance(held, Mapping) else {str(i): tensor for i, tensor in enumerate(held)}
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
        padding = Padding.of_record(record.get("padding"))  # files of earlier versions have none
        return cls(record["kind"], tuple(record["names"]), shapes, tuple(record["dtypes"]), padding)

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
        named = dict(zip(self.names, tensors, strict=True))
        if self.kind in ("mapping", "one mapping"):
            return named if self.kind == "mapping" else (named,)
        if self.kind in ("one list", "one tuple"):
            return (list(tensors) if self.kind == "one list" else tuple(tensors),)
        return tensors[0] if self.kind == "tensor" else tuple(tensors)

    def in_wide_integers(self, inputs: Any) -> Any:
        """A batch in this form, whose 64-bit integers JAX has narrowed, as torch had it: ``one_hot`` takes no other."""
        held: Any = [inputs] if self.kind == "tensor" else inputs if self.kind in ("tuple", "mapping") else inputs[0]
        found = [held[name if isinstance(held, Mapping) else int(name)] for name in self.names]
        pairs = zip(found, self.dtypes, strict=True)
        return self.nest([t.long() if t.dtype is torch.int32 and name == "int64" else t for t, name in pairs])

    def taken_from(self, given: Any) -> Any:
        """What the model takes of a batch's inputs, nested as it takes them: what else they hold is left out.

        Raises:
            TypeError: If something is no tensor.
            ValueError: If an input is missing, or there are more than the model takes.
        """
        if self.kind in ("mapping", "one mapping"):
            one = self.kind == "one mapping" and isinstance(given, tuple) and len(given) == 1
            return self.nest(self._named(given[0] if one else given))
        if isinstance(given, Mapping):
            raise TypeError(
                f"The inputs are a mapping with {', '.join(map(repr, given))}, and the model was fitted with "
                f"{len(self.names)} by position. Give them as they were given to fit."
            )
        if not isinstance(given, tuple | list):
            return self.nest(self._counted([as_tensor(given)]))
        arrays = [as_tensor(value) for value in given if is_array(value)]
        return self.nest(self._counted(arrays if len(arrays) == len(self.names) else list(map(as_tensor, given))))

    def read(self, batch: Batch) -> Batch:
        """A batch as the model takes it; targets per token are filled up as its inputs are."""
        inputs = self.taken_from(batch.input)
        if self.padding is None:
            return Batch(inputs, batch.target)
        return Batch(inputs, self.padding.filled_target(batch.target, self.padding.length_of(batch.input)))

    def _named(self, given: Any) -> list[torch.Tensor]:
        if not isinstance(given, Mapping):
            if len(self.names) == 1 and is_array(given):
                return [as_tensor(given)]
            raise TypeError(
                f"The inputs are a {type(given).__name__}, and the model was fitted with a mapping of "
                f"{', '.join(map(repr, self.names))}. Give such a mapping."
            )
        missing = [name for name in self.names if given.get(name) is None]
        if missing:
            raise ValueError(
                f"The inputs lack {missing[0]!r}, with which the model was fitted; they hold "
                f"{', '.join(map(repr, given))}. Give it, or fit without it."
            )
        found = {name: as_tensor(given[name], f"Input {name!r} is") for name in self.names}
        padding = self.padding
        return [t if padding is None else padding.filled(name, t) for name, t in found.items()]

    def _counted(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        if len(tensors) != len(self.names):
            raise ValueError(f"The model was traced with {len(self.names)} input tensors, {len(tensors)} were given.")
        return tensors
