"""A fitted posterior on disk: safetensors, never pickle. The network itself stays where its owner keeps it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from bridge.fitting import FittedModel, trace_for_fit
from bridge.laplace import Laplace
from bridge.tensors import to_free_jax, to_jax, to_torch
from jax_core.data.trees import on_device_of
from jax_core.fit import Fitted
from jax_core.lowrank.plan import Plan
from jax_core.operators import Dense, Diagonal, LowRank
from jax_core.posterior import prior_vector

_FORMAT = "torch-laplace-bridge 1"
_STRUCTURES = {"lowrank": LowRank, "full": Dense, "diag": Diagonal}
_NUMBERS = ("nll", "num_samples", "num_total_samples", "outputs_per_sample")


def save(la: Laplace, path: str | Path) -> None:
    """Write what a fit has found: the reduced curvature, the prior precision, and two inputs to trace with again.

    An existing file is replaced only once the new one is complete.

    Args:
        la: A fitted :class:`~bridge.laplace.Laplace`.
        path: The file, ``*.safetensors`` by custom.

    Raises:
        RuntimeError: Before ``fit``.
    """
    fit = la._fit_result()[0]
    curvature: Any = fit.fitted.curvature
    arrays = {f"curvature.{f.name}": getattr(curvature, f.name) for f in dataclasses.fields(curvature)}
    tensors = {name: to_torch(array).contiguous().clone() for name, array in arrays.items()}
    tensors["prior_precision"] = to_torch(prior_vector(la.prior_precision, fit.params)).clone()
    kind, inputs = _flat(fit.example)
    tensors |= {f"example.{name}": tensor.detach().cpu().contiguous().clone() for name, tensor in inputs.items()}
    described = {
        "structure": la.options.structure,
        "example": kind,
        "weights": digest(la.model),
        "plan": None if fit.fitted.plan is None else dataclasses.asdict(fit.fitted.plan),
        **{name: getattr(fit.fitted, name) for name in _NUMBERS},
    }
    unfinished = Path(f"{path}.part")
    save_file(tensors, unfinished, metadata={"format": _FORMAT, "fit": json.dumps(described)})
    os.replace(unfinished, path)


def load(path: str | Path, la: Laplace) -> Laplace:
    """Give a new ``Laplace`` around the same trained model the posterior of a file.

    Args:
        path: Written by :func:`save`.
        la: Described as the saved one was, not fitted; the model holds the weights it had then.

    Returns:
        ``la``, as if fitted, with the prior precision that was saved.

    Raises:
        ValueError: If the file is of another kind, or its structure or weights are not those of ``la``; ``la`` is then
            unchanged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise ValueError(
            f"{path} is no safetensors file ({error}). Give a file that bridge.save has written."
        ) from None
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"{path} was not written by bridge.save (or by another version of it).")
    described = json.loads(metadata["fit"])
    _check(described, la, path)
    named = {name.removeprefix("curvature."): t for name, t in tensors.items() if name.startswith("curvature.")}
    inputs = {name.removeprefix("example."): t for name, t in tensors.items() if name.startswith("example.")}
    example = _structured(described["example"], inputs)
    traced = trace_for_fit(la.model, example, la._reading.tracer)
    curvature = _STRUCTURES[described["structure"]](**on_device_of(traced.params, to_jax(named)))
    plan = None if described["plan"] is None else Plan(**described["plan"])
    fitted = Fitted(curvature, **{name: described[name] for name in _NUMBERS}, plan=plan)
    prior = tensors["prior_precision"]
    return la._adopt(FittedModel(traced, fitted, example), float(prior) if prior.ndim == 0 else to_free_jax(prior))


def _check(described: dict[str, Any], la: Laplace, path: str | Path) -> None:
    if described["structure"] != la.options.structure:
        raise ValueError(
            f"{path} holds a posterior with hessian_structure={described['structure']!r}, this Laplace has "
            f"{la.options.structure!r}. Construct it with the saved one."
        )
    if described["weights"] != digest(la.model):
        raise ValueError(
            f"{path} belongs to a model with other weights. Load the state dict that was in force at fit, or fit anew."
        )


def digest(model: nn.Module) -> str:
    """A hash over names, shapes and values of a model's parameters and buffers."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _flat(example: Any) -> tuple[str, dict[str, torch.Tensor]]:
    if isinstance(example, torch.Tensor):
        return "tensor", {"0": example}
    if isinstance(example, dict):
        return "mapping", dict(example)
    return "tuple", {str(i): tensor for i, tensor in enumerate(example)}


def _structured(kind: str, inputs: dict[str, torch.Tensor]) -> Any:
    if kind == "mapping":
        return inputs
    ordered = tuple(inputs[str(i)] for i in range(len(inputs)))
    return ordered[0] if kind == "tensor" else ordered
