"""Which weights a posterior covers: all that may be trained, some modules', the last layer's, or some one by one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as torch_pytree

from bridge.last_layer import find_last_layer, listed, owners_of, turned
from bridge.one_example import SUBNETWORK
from bridge.options import did_you_mean, one_of
from bridge.parameter_order import ParameterOrder
from bridge.tracing.checks import unwrap
from jax_core.fit import Structure

Kind: TypeAlias = Literal["all", "last_layer", "subnetwork"]
WeightSubset: TypeAlias = Kind | Sequence[str]
_SAMPLES = 4  # on which the last layer is looked for
_OF_SINGLE_WEIGHTS: tuple[Structure, ...] = ("full", "diag", "lowrank")


@dataclass(frozen=True)
class Subset:
    """What is covered.

    Attributes:
        kind: ``"all"`` parameters, those of the ``"last_layer"``, of ``"modules"``, or the weights of a
            ``"subnetwork"``.
        name: The last layer's; ``None`` until it is found on a batch of data.
        patterns: Of the modules' or parameters' names, as the shell matches them.
        indices: Of the weights, in the flattened parameters with ``requires_grad=True``.
    """

    kind: Literal["all", "last_layer", "modules", "subnetwork"] = "all"
    name: str | None = None
    patterns: tuple[str, ...] = ()
    indices: tuple[int, ...] = ()

    @classmethod
    def checked(cls, kind: WeightSubset, name: str | None, model: nn.Module, indices: Any = None) -> Subset:
        """From a user's options.

        Raises:
            ValueError: For another kind, options that do not go with it, or what is not in the model.
        """
        if isinstance(kind, str):
            one_of("subset_of_weights", kind, Kind)
            known: Any = kind
            found = cls(known, name)
        else:
            found = cls("modules", patterns=tuple(kind))
            found.names(model)
        if name is not None and found.kind != "last_layer":
            raise ValueError(
                f"last_layer_name={name!r} goes with subset_of_weights='last_layer', and {kind!r} was given."
            )
        if (indices is None) == (found.kind == "subnetwork"):
            raise ValueError(
                "subset_of_weights='subnetwork' needs subnetwork_indices=, the weights to cover in the flattened "
                "model.parameters(), and no other subset takes them; bridge.subnetworks chooses some."
            )
        if name is not None and name not in dict(unwrap(model).named_modules()):
            known = list(owners_of(unwrap(model)))
            raise ValueError(
                f"last_layer_name={name!r} names no module.{did_you_mean(name, known)} The last ones with parameters "
                f"are {listed(known)}."
            )
        return found if indices is None else replace(found, indices=_checked_indices(indices, model))

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> Subset:
        """From the lists that a file holds in the place of tuples."""
        named: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
        return cls(**named)

    def for_structure(self, structure: Structure) -> Subset:
        """Itself, if the structure goes with it.

        Raises:
            ValueError: If the structure needs whole layers.
        """
        if self.kind == "subnetwork" and structure not in _OF_SINGLE_WEIGHTS:
            raise ValueError(
                f"hessian_structure={structure!r} is about whole layers, and a subnetwork is made of single weights. "
                f"Choose one of {', '.join(map(repr, _OF_SINGLE_WEIGHTS))}."
            )
        return self

    @property
    def told(self) -> str:
        """In words."""
        if self.kind == "all":
            return "all weights"
        if self.kind == "modules":
            return f"the modules {listed(self.patterns)}"
        if self.kind == "subnetwork":
            return f"a subnetwork of {len(self.indices)} weights"
        return "the last layer" if self.name is None else f"the last layer {self.name!r}"

    def names(self, model: nn.Module) -> frozenset[str] | None:
        """Names of the parameters that are covered as far as they require a gradient; ``None`` for all.

        A last layer that is still to be found is taken to be the module with parameters that was registered last.

        Raises:
            ValueError: If no module has parameters, or a pattern matches none.
        """
        inner = unwrap(model)
        if self.kind == "all":
            return None
        if self.kind == "modules":
            return frozenset(_matching(inner, self.patterns))
        if self.kind == "subnetwork":
            order = ParameterOrder.of(model)
            ends = np.cumsum(order.sizes)
            return frozenset(order.names[i] for i in np.unique(np.searchsorted(ends, self.indices, side="right")))
        owners = list(owners_of(inner))
        if not owners:
            raise ValueError("The model has no parameters, so it has no last layer.")
        module = dict(inner.named_modules())[owners[-1] if self.name is None else self.name]
        own = {id(parameter) for parameter in module.parameters()}
        return frozenset(name for name, parameter in inner.named_parameters() if id(parameter) in own)

    def order(self, model: nn.Module) -> ParameterOrder:
        """What is covered, as the numbers that a user gives and gets."""
        if self.kind == "subnetwork":
            return ParameterOrder((SUBNETWORK,), ((len(self.indices),),))
        return ParameterOrder.of(model, self.names(model))

    def places(self, model: nn.Module) -> np.ndarray | None:
        """Where a subnetwork's weights lie among the parameters that hold them, flattened in the core's order."""
        if self.kind != "subnetwork":
            return None
        whole, held = ParameterOrder.of(model), ParameterOrder.of(model, self.names(model))
        sizes = dict(zip(whole.names, whole.sizes, strict=True))
        starts = dict(zip(whole.names, np.cumsum([0, *whole.sizes[:-1]]), strict=True))
        flat = np.concatenate([starts[name] + np.arange(sizes[name]) for name in held.names])  # in torch's order
        inverse = {int(place): i for i, place in enumerate(held.to_core(flat))}
        return np.array([inverse[i] for i in self.indices], np.int32)

    def found(self, model: nn.Module, inputs: Any) -> Subset:
        """With the last layer's name, from running the model on a few samples.

        Raises:
            ValueError: If no single layer is the last, naming those that might be.
        """
        if self.kind != "last_layer" or self.name is not None:
            return self
        few = torch_pytree.tree_map(lambda leaf: leaf[:_SAMPLES], inputs)
        return replace(self, name=find_last_layer(unwrap(model), few))


@contextlib.contextmanager
def covering(model: nn.Module, names: frozenset[str] | None) -> Iterator[None]:
    """Let only the parameters named require a gradient, among those that do, and restore each one's own flag."""
    inner = unwrap(model)
    others = [] if names is None else [p for n, p in inner.named_parameters() if p.requires_grad and n not in names]
    with turned(others):
        yield


def _matching(model: nn.Module, patterns: Sequence[str]) -> set[str]:
    """Names of parameters that match a pattern, or lie in a module that does."""
    found: set[str] = set()
    for pattern in patterns:
        own = {name for name, _ in model.named_parameters() if _matches(name, pattern)}
        if not own:
            raise ValueError(
                f"subset_of_weights={pattern!r} matches no module or parameter. There are {listed(owners_of(model))}."
            )
        found |= own
    return found


def _matches(parameter: str, pattern: str) -> bool:
    parts = parameter.split(".")
    return any(fnmatchcase(".".join(parts[:i]), pattern) for i in range(1, len(parts) + 1))


def _checked_indices(given: Any, model: nn.Module) -> tuple[int, ...]:
    array = given.detach().cpu().numpy() if isinstance(given, torch.Tensor) else np.asarray(given)
    size = ParameterOrder.of(model).size
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
        raise ValueError(
            f"subnetwork_indices of shape {array.shape} and type {array.dtype}: give whole numbers in one axis, one at "
            "least; mask.nonzero().flatten() makes them of a mask."
        )
    if array.min() < 0 or array.max() >= size or np.unique(array).size != array.size:
        raise ValueError(
            f"subnetwork_indices from {array.min()} to {array.max()} ({array.size} of them): give each of the {size} "
            "weights with requires_grad=True at most once, counted from 0."
        )
    return tuple(array.tolist())
