"""torch.Tensor <-> jax.Array, for single tensors and nested containers: the only converter."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.core import Tracer

# JAX has no 64-bit types unless the user enables x64; the conversion is spelled out here, not left to a warning
_NARROWED = {
    torch.float64: torch.float32,
    torch.complex128: torch.complex64,
    torch.int64: torch.int32,
    torch.uint64: torch.uint32,
}
# DLPack carries no 8-bit floats: their bytes cross as uint8 and are read anew on the other side
_FLOAT8 = {
    name: getattr(torch, name)
    for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
    if hasattr(torch, name)
}


def to_jax(tree: Any) -> Any:
    """Convert every torch tensor (and numpy array) in `tree` to a `jax.Array`.

    Containers keep their type: dict, list, tuple, NamedTuple, dataclass, mapping. Other leaves pass unchanged.
    Gradients are cut (`detach`). On the CPU an aligned, contiguous tensor shares its memory with the result, so
    clone it first if it is going to be written to. While JAX's x64 mode is off, 64-bit types become 32-bit ones;
    a value that does not fit raises.
    """
    return _map(_leaf_to_jax, tree)


def to_torch(tree: Any) -> Any:
    """Convert every `jax.Array` (and numpy array) in `tree` to a `torch.Tensor`.

    The inverse of `to_jax`. On the CPU the tensor shares the array's memory: clone it before writing in place.
    """
    return _map(_leaf_to_torch, tree)


def jax_dtype(dtype: torch.dtype) -> np.dtype:
    """The dtype that `to_jax` gives to tensors of `dtype`, under the x64 mode in force."""
    if dtype in _NARROWED and not _x64():
        dtype = _NARROWED[dtype]
    return jnp.dtype(str(dtype).removeprefix("torch."))


def _map(leaf: Callable[[Any], Any], tree: Any) -> Any:
    if isinstance(tree, dict):  # OrderedDict, defaultdict and transformers' ModelOutput stay what they are
        out = copy.copy(tree)
        for key, value in tree.items():
            out[key] = _map(leaf, value)
        return out
    if isinstance(tree, Mapping):
        return {key: _map(leaf, value) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(_map(leaf, value) for value in tree))
    if isinstance(tree, (list, tuple)):
        return type(tree)(_map(leaf, value) for value in tree)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        out = copy.copy(tree)
        for field in dataclasses.fields(tree):  # `replace` would refuse fields with init=False
            object.__setattr__(out, field.name, _map(leaf, getattr(tree, field.name)))
        return out
    return leaf(tree)


def to_free_jax(tensor: torch.Tensor) -> jax.Array:
    """A copy that is on no device in particular: such an array follows those that it meets."""
    return jax.block_until_ready(jnp.array(np.asarray(to_jax(tensor))))  # the tensor may be written to from now on


def _leaf_to_jax(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray):
        leaf = torch.from_numpy(np.array(leaf) if not leaf.flags.writeable else leaf)
    if not isinstance(leaf, torch.Tensor):
        return leaf
    if leaf.layout is not torch.strided or leaf.is_quantized:
        raise TypeError(
            f"to_jax takes dense tensors, got layout {leaf.layout}, dtype {leaf.dtype}. Convert it first, "
            "with .to_dense() or .dequantize()."
        )
    if leaf.is_meta:
        raise TypeError("to_jax got a tensor on the meta device, which holds no values. Load the weights first.")
    tensor = _narrow(leaf.detach().resolve_conj().resolve_neg()).contiguous()
    if tensor.numel() == 0:
        return jnp.zeros(tuple(tensor.shape), jax_dtype(tensor.dtype))
    if tensor.dtype in _FLOAT8.values():
        return _from_dlpack(tensor.view(torch.uint8)).view(jax_dtype(tensor.dtype))
    return _from_dlpack(tensor)


def _from_dlpack(tensor: torch.Tensor) -> jax.Array:
    platforms = {"cpu": "cpu", "cuda": "gpu"}
    wanted = platforms.get(tensor.device.type)
    if wanted is None or wanted not in {"cpu", jax.default_backend()}:
        tensor = tensor.cpu()  # JAX cannot see that device: through the host
    return jax.dlpack.from_dlpack(tensor)


def _leaf_to_torch(leaf: Any) -> Any:
    if isinstance(leaf, Tracer):
        raise TypeError("to_torch got a traced value. Call it outside jax.jit, vmap and grad.")
    if isinstance(leaf, np.ndarray):
        return torch.from_numpy(leaf if leaf.flags.writeable else leaf.copy())
    if not isinstance(leaf, jax.Array):
        return leaf
    name = str(leaf.dtype)
    dtype = _FLOAT8.get(name, getattr(torch, name, None))
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"torch has no dtype {name}. Convert the array first, with .astype(...).")
    if leaf.size == 0:
        return torch.zeros(leaf.shape, dtype=dtype)
    if len(leaf.devices()) > 1:
        leaf = jax.device_put(leaf, jax.devices("cpu")[0])
    if name in _FLOAT8:
        return torch.from_dlpack(leaf.view(jnp.uint8)).view(dtype)
    return torch.from_dlpack(leaf)


def _narrow(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype not in _NARROWED or _x64():
        return tensor
    target = _NARROWED[tensor.dtype]
    narrow = tensor.to(target)
    fits = torch.equal(narrow.to(tensor.dtype), tensor) if not target.is_floating_point else _finite(narrow, tensor)
    if not fits:
        raise OverflowError(
            f"A {tensor.dtype} tensor of shape {tuple(tensor.shape)} holds values that {target} cannot. "
            "Enable JAX's 64-bit types: jax.config.update('jax_enable_x64', True)."
        )
    return narrow


def _finite(narrow: torch.Tensor, tensor: torch.Tensor) -> bool:
    return bool((narrow.isfinite() | ~tensor.isfinite()).all())


def _x64() -> bool:
    return jax.dtypes.canonicalize_dtype(np.float64) == np.float64
