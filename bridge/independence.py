"""Whether a model treats each sample of a batch alone, which a sum over samples takes for granted."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as torch_pytree

from bridge.outputs import single_output
from bridge.tracing.comparison import norm
from bridge.tracing.errors import TraceError
from bridge.tracing.state import looking_at

_SAMPLES = 16  # looked at, of a larger batch
_FEW = 4  # of which chance may hide what they see: two may lie sorted
_OUTPUTS, _OUTPUTS_64 = 1e-4, 1e-9  # relative differences that rounding explains
_GRADIENTS, _GRADIENTS_64 = 1e-3, 1e-7  # beyond the first float64 decides: kinks amplify rounding


def output_shapes(model: nn.Module, inputs: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the outputs for a batch of two or more, and for its first sample alone.

    The samples are independent: outputs, and a directional derivative of all of them, are those of the whole batch when
    it is parted into halves or a sample is taken alone.

    Args:
        model: Put in eval mode meanwhile.
        inputs: A batch as the model takes it: a tensor, a tuple or a mapping, axis 0 the batch.

    Raises:
        TraceError: Naming the module in which samples of a batch begin to see one another, or if axis 0 of the outputs
            is not the batch.
    """
    batch = _several(inputs)
    count = length(batch)
    cuts = [(0, count // 2), (count // 2, count), (0, 1), (count - 1, count)]
    with looking_at(model):
        whole = _outputs(model, batch)
        parts = [_part(model, batch, cut) for cut in cuts]
        _check_batch_axis(whole, count, parts, cuts)
        tolerance = _OUTPUTS_64 if whole.dtype is torch.float64 else _OUTPUTS
        error = max(
            _difference(p.reshape(-1, *whole.shape[1:]), whole[a:b]) for p, (a, b) in zip(parts, cuts, strict=True)
        )
        if error > tolerance:
            raise TraceError(_seen(model, batch, f"outputs differ by {error:.1e} of their size"))
        if whole.requires_grad and (error := _gradient_error(model, batch)) > _GRADIENTS:
            error = _gradient_error_in_double(model, batch)
            if error > _GRADIENTS_64:
                raise TraceError(_seen(model, batch, f"gradients differ by {error:.1e} of their size"))
    return tuple(whole.shape), tuple(parts[2].shape)


def _part(model: nn.Module, batch: Any, cut: tuple[int, int]) -> torch.Tensor:
    """The outputs for a part of a batch that the model takes as a whole."""
    try:
        return _outputs(model, _slice(batch, *cut))
    except Exception as error:
        raise TraceError(_seen(model, batch, f"{type(error).__name__} ({error})")) from error


def call(model: nn.Module, inputs: Any) -> Any:
    """The model on a batch of inputs: one tensor, a tuple or list of them, or a mapping of keyword inputs."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


def runs(model: nn.Module, inputs: Any) -> bool:
    """Whether the model takes a batch, by trying it; what it writes is put back."""
    try:
        with looking_at(model), torch.no_grad():
            call(model, inputs)
    except Exception:  # whatever the model's own code raises
        return False
    return True


def _outputs(model: nn.Module, inputs: Any) -> torch.Tensor:
    return single_output(call(model, inputs))


def _several(inputs: Any) -> Any:
    """Some samples; of a small batch, those and others near them, the other way round."""
    if length(inputs) >= _FEW:
        return _slice(inputs, 0, _SAMPLES)

    def doubled(leaf: torch.Tensor) -> torch.Tensor:
        return torch.cat([leaf, (0.9 * leaf + 0.1 if leaf.is_floating_point() else leaf).flip(0)])

    return torch_pytree.tree_map(doubled, inputs)


def length(inputs: Any) -> int:
    """Samples of a batch."""
    return torch_pytree.tree_leaves(inputs)[0].shape[0]


def _slice(inputs: Any, start: int, stop: int) -> Any:
    return torch_pytree.tree_map(lambda leaf: leaf[start:stop], inputs)


def _check_batch_axis(whole: torch.Tensor, count: int, parts: list[torch.Tensor], cuts: list[tuple[int, int]]) -> None:
    def has_axis(outputs: torch.Tensor, samples: int) -> bool:
        if samples == 1:  # squeeze() may have taken the axis
            return outputs.numel() * count == whole.numel()
        return tuple(outputs.shape) == (samples, *whole.shape[1:])

    sizes = [b - a for a, b in cuts]
    if not has_axis(whole, count) or not all(has_axis(part, n) for part, n in zip(parts, sizes, strict=True)):
        shapes = f"{tuple(whole.shape)} for {count} inputs, {tuple(parts[1].shape)} for {sizes[1]}"
        raise TraceError(
            f"Axis 0 of the model's outputs is not the batch: they have shape {shapes}. Put the batch first, with "
            "batch_first=True or outputs.transpose(0, 1) at the end of forward, in the inputs as well."
        )


def _difference(got: torch.Tensor, wanted: torch.Tensor) -> float:
    if not wanted.is_floating_point():
        return 0.0 if torch.equal(got, wanted) else float("inf")
    same = (got == wanted) | (got.isnan() & wanted.isnan())
    scale = norm(wanted.detach())
    return norm(torch.where(same, 0, got - wanted).detach()) / max(scale, 1e-30)


def _gradient_error(model: nn.Module, batch: Any) -> float:
    """How far the halves' gradients are from adding up to the batch's, for one random cotangent."""
    count = length(batch)
    shape = _outputs(model, batch).shape
    cotangent = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    params = [p for p in model.parameters() if p.requires_grad]

    def gradients(start: int, stop: int) -> tuple[torch.Tensor, ...]:
        outputs = _outputs(model, _slice(batch, start, stop))
        start_with = cotangent[start:stop].to(outputs).reshape(outputs.shape)
        return torch.autograd.grad(outputs, params, start_with, allow_unused=True, materialize_grads=True)

    whole = gradients(0, count)
    halves = zip(gradients(0, count // 2), gradients(count // 2, count), strict=True)
    norms = [norm(g) for g in whole]
    floor = max(1e-3 * max(norms, default=0.0), 1e-30)
    return max(
        (norm(g - (a + b)) / max(n, floor) for g, n, (a, b) in zip(whole, norms, halves, strict=True)), default=0.0
    )


def _gradient_error_in_double(model: nn.Module, batch: Any) -> float:
    try:
        double = copy.deepcopy(model).double()
    except Exception:  # a model that cannot be copied is judged by its outputs, which agree
        return 0.0
    return _gradient_error(
        double, torch_pytree.tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, batch)
    )


def _seen(model: nn.Module, batch: Any, how: str) -> str:
    where = _first_module(model, batch)
    return (
        f"The samples of a batch see one another in {where}: {how} when other samples are left out of the batch. A "
        "Laplace approximation adds up samples taken alone, so it would be of another model. Take out what looks along "
        "axis 0 or at the batch's length (a mean or softmax over the batch, x / len(x), attention over the batch; "
        "BatchNorm needs track_running_stats=True)."
    )


def _first_module(model: nn.Module, batch: Any) -> str:
    """The innermost module whose output for half of the batch is not that half of its output for the whole."""
    half = max(1, length(batch) // 2)
    whole, part = _module_values(model, batch), _module_values(model, _slice(batch, 0, half))
    for (path, number), (given, output) in whole.items():
        other = part.get((path, number))
        if other is None or not _is_moved(output, other[1], length(batch), half):
            continue
        if _is_moved(given, other[0], length(batch), half):  # what came in was mixed before
            parent = path.rpartition(".")[0]
            return f"{parent if parent.startswith('model.') else _ROOT}, before {path}"
        return path
    return _ROOT


_ROOT = "the model's own forward"


def _is_moved(whole: torch.Tensor | None, part: torch.Tensor | None, count: int, half: int) -> bool:
    """Whether a value of a part of the batch is another than in the whole, as far as both have the batch on axis 0."""
    if whole is None or part is None or whole.ndim == 0 or whole.shape[0] != count:
        return False
    if part.numel() * count != whole.numel() * half:
        return False
    return _difference(part.reshape(-1, *whole.shape[1:]), whole[:half]) > _OUTPUTS


def _module_values(model: nn.Module, batch: Any) -> dict[tuple[str, int], tuple[Any, torch.Tensor]]:
    """First input and output of each call of a module, in the order in which the calls end."""
    found: dict[tuple[str, int], tuple[Any, torch.Tensor]] = {}
    handles = []
    for name, module in model.named_modules():
        path = f"model.{name} ({type(module).__name__})" if name else _ROOT

        def keep(module: nn.Module, args: Any, output: Any, path: str = path) -> None:
            if isinstance(output, torch.Tensor):
                given = next((arg.detach().clone() for arg in args if isinstance(arg, torch.Tensor)), None)
                found[path, sum(key[0] == path for key in found)] = given, output.detach().clone()

        handles.append(module.register_forward_hook(keep))
    try:
        with torch.no_grad():
            call(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return found
