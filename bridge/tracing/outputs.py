"""Outputs of models in containers that JAX knows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

_LEAVES = (torch.Tensor, np.ndarray, bool, int, float, complex, str, type(None), torch.SymInt, torch.SymFloat)


def plain(tree: Any) -> Any:
    """Dicts, lists and tuples in the place of classes that JAX does not know.

    A dataclass becomes the dict of its fields. What holds no tensors in a known way, such as the cache of a
    generating model, is left out of a dict, and None elsewhere.
    """
    if isinstance(tree, Mapping):
        return _known({key: plain(value) for key, value in tree.items()}, tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*map(plain, tree))
    if isinstance(tree, (list, tuple)):  # a tuple may be one of torch.return_types
        return [*map(plain, tree)] if isinstance(tree, list) else tuple(map(plain, tree))
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        fields = {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}
        return _known({key: plain(value) for key, value in fields.items()}, fields)
    # anything with a `value` is a stand-in of torch2jax's
    return tree if isinstance(tree, _LEAVES) or hasattr(tree, "value") else None


def _known(converted: dict[Any, Any], given: Mapping[Any, Any]) -> dict[Any, Any]:
    return {key: value for key, value in converted.items() if value is not None or given[key] is None}
