"""What a traced function takes: the structure, shapes and dtypes of the example, with a batch axis left open."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Array
from torch.utils import _pytree as torch_pytree

from bridge.tracing.guards import BatchSizes

Inputs = tuple[Any, ...] | Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """What the traced function expects of one tensor among its inputs."""

    name: str
    shape: tuple[int | None, ...]
    """The traced shape; None stands for the batch axis, which may have any length."""
    dtype: str

    def check(self, value: Any) -> Array:
        """Return `value` as an array of this dtype, or raise what is wrong with it."""
        if isinstance(value, torch.Tensor):
            raise TypeError(f"Input {self.name!r} is a torch tensor. Convert it first: bridge.to_jax(x).")
        array = jnp.asarray(value)
        if not self._fits(array.shape):
            wanted = ", ".join("batch" if n is None else str(n) for n in self.shape)
            raise ValueError(
                f"Input {self.name!r} has shape {array.shape}, but the model was traced for ({wanted}). "
                "Give a batch of such inputs, or trace the model again with an example of this shape."
            )
        wanted = jax.dtypes.canonicalize_dtype(jnp.dtype(self.dtype))
        if _kind(array.dtype) != _kind(wanted):
            raise TypeError(
                f"Input {self.name!r} has dtype {array.dtype}, but the model was traced for {wanted}. "
                f"Convert it to {wanted} first."
            )
        return array.astype(wanted)

    def _fits(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == len(self.shape) and all(
            want is None or want == got for want, got in zip(self.shape, shape, strict=True)
        )


@dataclasses.dataclass(frozen=True)
class Constant:
    """An input that is no tensor: the traced function holds for this value alone."""

    value: Any

    def check(self, value: Any) -> Any:
        """Return `value`, or raise where it is another one."""
        if value is self.value or (type(value) is type(self.value) and value == self.value):
            return value
        raise ValueError(
            f"An input was {self.value!r} when the model was traced and is {value!r} now. "
            "Inputs that are not tensors are fixed by tracing: trace the model again."
        )


@dataclasses.dataclass(frozen=True)
class Signature:
    """How a traced function takes its inputs."""

    keywords: tuple[str, ...] | None
    """The keys of the mapping that it takes, or None where inputs are positional."""
    structure: Any
    """torch's description of how tensors nest in the inputs."""
    leaves: tuple[InputSpec | Constant, ...]
    batch: BatchSizes = dataclasses.field(default_factory=BatchSizes)
    """The batch sizes for which the model's code takes the path that was traced."""

    @property
    def tensors(self) -> tuple[InputSpec, ...]:
        """What is expected of each tensor."""
        return tuple(leaf for leaf in self.leaves if isinstance(leaf, InputSpec))

    def flatten(self, inputs: tuple[Any, ...]) -> list[Any]:
        """The leaves of the inputs, checked."""
        given: Any = inputs
        if self.keywords is not None:
            if len(inputs) != 1 or not isinstance(inputs[0], Mapping) or set(inputs[0]) != set(self.keywords):
                raise TypeError(f"The model was traced with keyword inputs: give one mapping with {self.keywords}.")
            given = inputs[0]
        given = _in_order(given, self.structure)
        leaves, structure = torch_pytree.tree_flatten(given)
        if structure != self.structure:
            raise TypeError(f"The model was traced with inputs {self.structure}, got {structure}.")
        checked = [spec.check(leaf) for spec, leaf in zip(self.leaves, leaves, strict=True)]
        self._check_batch(checked)
        return checked

    def nest(self, leaves: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Leaves as the positional and keyword arguments of the model, with the constants in their places."""
        filled = [s.value if isinstance(s, Constant) else x for x, s in zip(leaves, self.leaves, strict=True)]
        given = torch_pytree.tree_unflatten(filled, self.structure)
        return (given, {}) if self.keywords is None else ((), given)

    def _check_batch(self, leaves: Sequence[Any]) -> None:
        self.batch.check([x.shape[0] for x, s in zip(leaves, self.leaves, strict=True) if _open(s)])

    def size(self, inputs: tuple[Any, ...]) -> int | None:
        """The length of the batch axis of inputs that may be of any kind."""
        leaves = torch_pytree.tree_leaves(
            inputs if self.keywords is None else [inputs[0].get(name) for name in self.keywords]
        )
        sizes = [jnp.shape(x)[0] for x, spec in zip(leaves, self.leaves, strict=False) if _open(spec) and jnp.ndim(x)]
        return sizes[0] if sizes else None


def make_signature(
    inputs: Inputs, open_axes: Sequence[bool] | None = None, batch: BatchSizes | None = None
) -> Signature:
    """The signature of an example; `open_axes` says which leaves have a batch axis, else their length does."""
    keywords = None if isinstance(inputs, tuple) else tuple(inputs)
    given = inputs if isinstance(inputs, tuple) else dict(inputs)
    paths, structure = torch_pytree.tree_flatten_with_path(given)
    size = batch_size(inputs)
    flags = open_axes if open_axes is not None else [is_batched(leaf, size) for _, leaf in paths]
    leaves = tuple(_leaf(path, leaf, flag) for (path, leaf), flag in zip(paths, flags, strict=True))
    return Signature(keywords, structure, leaves, batch or BatchSizes())


def split_arrays(inputs: tuple[Any, ...]) -> tuple[list[Any], Callable[[list[Any]], tuple[Any, ...]]]:
    """The arrays among the inputs, and how to put them back between the flags and numbers, which `jit` must not see."""
    leaves, structure = jax.tree.flatten(inputs)
    arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array)]

    def join(arrays: list[Any]) -> tuple[Any, ...]:
        given = iter(arrays)
        return structure.unflatten([next(given) if isinstance(leaf, jax.Array) else leaf for leaf in leaves])

    return arrays, join


def batch_size(inputs: Any) -> int | None:
    """The length of axis 0 of the first tensor that has one."""
    for leaf in torch_pytree.tree_leaves(inputs):
        if isinstance(leaf, torch.Tensor) and leaf.ndim:
            return leaf.shape[0]
    return None


def is_batched(leaf: Any, size: int | None) -> bool:
    """Whether axis 0 of a leaf of the inputs is taken for the batch."""
    return isinstance(leaf, torch.Tensor) and leaf.ndim > 0 and leaf.shape[0] == size


def _in_order(given: Any, structure: Any) -> Any:
    """Inputs with the keys of every dict in the order of the example's; `jit` gives them back sorted."""
    # torch 2.6 to 2.8 have a list, which later ones are about to drop
    children = structure.children() if hasattr(structure, "children") else structure.children_specs
    if structure.type is dict and isinstance(given, Mapping) and set(given) == set(structure.context):
        return {key: _in_order(given[key], child) for key, child in zip(structure.context, children, strict=True)}
    if structure.type in (tuple, list) and type(given) is structure.type and len(given) == len(children):
        return structure.type(map(_in_order, given, children))
    return given


def _open(spec: InputSpec | Constant) -> bool:
    return isinstance(spec, InputSpec) and bool(spec.shape) and spec.shape[0] is None


def _leaf(path: Any, leaf: Any, batched: bool) -> InputSpec | Constant:
    if not isinstance(leaf, torch.Tensor):
        return Constant(leaf)
    shape = (None, *leaf.shape[1:]) if batched else tuple(leaf.shape)
    name = "".join(str(getattr(key, "key", key)) for key in path)
    return InputSpec(name, shape, str(leaf.dtype).removeprefix("torch."))


def _kind(dtype: np.dtype) -> str:
    for kind in (jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating):
        if jnp.issubdtype(dtype, kind):
            return kind.__name__
    return str(dtype)
