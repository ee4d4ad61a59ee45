"""How a model's forward takes what a batch holds: by keyword, by position, or all in one mapping or list."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter
from typing import Any

import jax
import numpy as np
import torch
from torch import nn

from bridge.independence import runs
from bridge.placement import device_of
from bridge.precision import in_float32

_ALIKE = 0.8  # of two names, one perhaps the other misspelt


@dataclass(frozen=True)
class Parameters:
    """What a module's forward takes.

    Attributes:
        places: Names of what it takes by position.
        names: Of what it takes by keyword.
        required: Of both, those without a default.
        more_places: Whether it ends in ``*args``.
        more_names: Whether it ends in ``**kwargs``.
    """

    places: tuple[str, ...]
    names: frozenset[str]
    required: tuple[str, ...]
    more_places: bool = False
    more_names: bool = False

    @classmethod
    def of(cls, model: nn.Module) -> Parameters:
        """From the signature of forward; of one that has none, anything."""
        try:
            given = inspect.signature(model.forward).parameters.values()
        except (TypeError, ValueError):
            return cls((), frozenset(), (), more_places=True, more_names=True)
        kinds = {p.kind for p in given}
        base = getattr(model, "get_base_model", None)
        if base is not None and kinds <= {Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD}:
            return cls.of(base())  # peft hands all on to the model inside
        placed = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
        named = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
        return cls(
            tuple(p.name for p in given if p.kind in placed),
            frozenset(p.name for p in given if p.kind in named),
            tuple(p.name for p in given if p.default is Parameter.empty and p.kind in {*placed, *named}),
            Parameter.VAR_POSITIONAL in kinds,
            Parameter.VAR_KEYWORD in kinds,
        )

    def bind(self, count: int) -> bool:
        """Whether forward can be called with so many inputs by position."""
        return len(self.required) <= count and (self.more_places or count <= len(self.places))

    def by_keyword(self, names: Sequence[str]) -> bool:
        """Whether a mapping with these keys is meant as keyword inputs, not as one input."""
        if self.names & set(names):
            return True
        return self.more_names and not self.required


def as_taken(model: nn.Module, inputs: Any) -> Any:
    """A batch's inputs as a model is called with them, without what its forward does not look at.

    A mapping whose keys are parameters of forward becomes a dict of keyword inputs, any other one ``(dict,)``, one
    input; a list or tuple becomes a tuple of positional inputs, or ``(list,)`` where forward takes one list. Words,
    ``None`` and lists of metadata that forward has no parameter for are left out.

    Raises:
        TypeError: Naming an input that forward takes and that is no tensor, that it lacks, or that is misspelt.
    """
    takes = Parameters.of(model)
    if isinstance(inputs, Mapping):
        given = {str(name): value for name, value in inputs.items()}
        if takes.by_keyword(list(given)):
            return _keywords(model, takes, given)
        return (arrays_of(given),)
    if isinstance(inputs, tuple | list):
        return _positions(model, takes, inputs)
    return as_tensor(inputs)


def is_array(value: Any) -> bool:
    """Whether torch holds a value, or can take it from numpy."""
    return isinstance(value, torch.Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "fiubc")


def as_tensor(value: Any, what: str = "The inputs hold") -> torch.Tensor:
    """A tensor, or one around a numpy array or number.

    Raises:
        TypeError: For anything else.
    """
    if not (is_array(value) or isinstance(value, bool | int | float)):
        shown = repr(value) if isinstance(value, str | bytes) or value is None else f"a {type(value).__name__}"
        raise TypeError(f"{what} {shown}. Give torch tensors or numpy arrays, as the model takes them.")
    return value if isinstance(value, torch.Tensor) else torch.as_tensor(value)


def arrays_of(given: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """What of a mapping is a tensor."""
    return {name: as_tensor(value) for name, value in given.items() if is_array(value)}


def _keywords(model: nn.Module, takes: Parameters, given: dict[str, Any]) -> dict[str, torch.Tensor]:
    where = f"{type(model).__name__}.forward"
    kept: dict[str, torch.Tensor] = {}
    for name, value in given.items():
        if name in takes.names:
            if value is None and name not in takes.required:
                continue
            kept[name] = as_tensor(value, f"Input {name!r}, which {where} takes, is")
        elif is_array(value) and takes.more_names:
            kept[name] = as_tensor(value)
        elif is_array(value):
            alike = difflib.get_close_matches(name, takes.names - set(given), 1, _ALIKE)
            if alike:
                raise TypeError(f"{where} takes no input {name!r}. Did you mean {alike[0]!r}?")
    missing = [name for name in takes.required if name not in kept]
    if missing:
        raise TypeError(
            f"{where} needs the input {missing[0]!r}, and the batch has {', '.join(map(repr, given))}. Name it so in "
            "the batch; to_batch= can rename what a loader yields."
        )
    return kept


def _positions(model: nn.Module, takes: Parameters, given: Sequence[Any]) -> Any:
    if any(isinstance(value, Mapping | tuple | list) and _nested(value) for value in given):
        raise TypeError(
            "The inputs nest deeper than one tuple, list or mapping. Give one tensor, a tuple of tensors or a mapping "
            "of them; to_batch= can bring others into that form."
        )
    arrays = [as_tensor(value) for value in given if is_array(value)]
    one = tuple(arrays) if isinstance(given, tuple) else list(arrays)
    ignored = len(given) - len(arrays)
    if ignored and not takes.bind(len(given)) and takes.bind(len(arrays)):
        return arrays[0] if len(arrays) == 1 else tuple(arrays)
    for place, value in enumerate(given):
        name = repr(takes.places[place]) if place < len(takes.places) else f"number {place}"
        as_tensor(value, f"Input {name} of {type(model).__name__}.forward is")
    several = takes.bind(len(given))
    if takes.bind(1) and (not several or (isinstance(one, list) and _takes_list(model, one))):
        return (one,)
    return tuple(as_tensor(value) for value in given)


def _nested(value: Any) -> bool:
    leaves = jax.tree.leaves(dict(value) if isinstance(value, Mapping) else value)
    return any(is_array(leaf) for leaf in leaves)


def _takes_list(model: nn.Module, inputs: list[torch.Tensor]) -> bool:
    """Whether a model takes a list as one input, by trying it on two samples."""
    device = device_of(model)
    return runs(model, ([in_float32(tensor[:2].to(device)) for tensor in inputs],))
