"""A fit for sequences of another length: the same posterior around a program that is made for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import torch
from torch import nn

from bridge.dataloader import first_inputs
from bridge.fitted_model import FittedModel
from bridge.fitting import output_layout, trace_for_fit
from bridge.losses import Loss
from bridge.outputs import OutputLayout
from bridge.padding import check_padding
from bridge.placement import on_device
from bridge.precision import in_float32
from bridge.subset import covering
from bridge.template import InputTemplate
from bridge.tracing.checks import unwrap

Shown = Callable[[Any], Any]


@dataclass(frozen=True)
class Ready:
    """What a prediction for a batch is made with.

    Attributes:
        fit: For batches of this length.
        batch: As the model takes it, filled up where programs are for longer ones.
        shown: From what is predicted for that to what is predicted for the batch as given.
    """

    fit: FittedModel
    batch: Any
    shown: Shown = lambda result: result


def ready_for(model: nn.Module, fit: FittedModel, x: Any) -> Ready:
    """A fit whose programs take a batch.

    Sequences with an attention mask are filled up to a power of two, or to the length of the fit, so that programs are
    few; that the model looks past what is filled up is seen on the first such batch.

    Raises:
        ValueError: If a batch does not fit, or filling up changes the model's outputs.
        TypeError: If it is not what the model takes.
    """
    if fit.loss.predicted is not None:
        fit = _for_singles(model, fit, x)
    padding = fit.template.padding
    own = None if padding is None else padding.length_of(x)
    if padding is None or own is None:
        return Ready(fit, fit.template.taken_from(x))
    size = padding.size_for(own)
    network = in_float32(unwrap(model))
    if size != padding.length and size not in fit.at_lengths:
        fit.at_lengths[size] = _made_for(network, fit, x, size)
    there = fit.at_lengths.get(size, fit)
    batch = there.template.taken_from(x)
    if own == size:
        return Ready(there, batch)
    if size not in fit.token_axes:
        short = on_device(network, in_float32(_with_length(fit.template, own).taken_from(x)))
        fit.token_axes[size] = check_padding(network, short, there.template.taken_from(short))
    axis = fit.token_axes[size]
    return Ready(there, batch) if axis is None else Ready(there, batch, _cut(there.layout, axis, own))


def _for_singles(model: nn.Module, fit: FittedModel, x: Any) -> FittedModel:
    """A fit of comparisons for inputs one by one, where they come so: another program of the same weights."""
    network = in_float32(unwrap(model))
    inputs = on_device(network, in_float32(first_inputs(network, x)))
    template = InputTemplate.of(inputs)
    if template.shapes == fit.template.shapes:
        return fit
    if template.shapes not in fit.singles:
        loss = Loss(fit.predicted, predicted=fit.predicted)
        fit.singles[template.shapes] = _traced_on(network, fit, inputs, template, loss)
    return fit.singles[template.shapes]


def _made_for(network: nn.Module, fit: FittedModel, x: Any, size: int) -> FittedModel:
    template = _with_length(fit.template, size)
    inputs = on_device(network, in_float32(template.taken_from(x)))
    return _traced_on(network, fit, inputs, template, fit.loss)


def _traced_on(network: nn.Module, fit: FittedModel, inputs: Any, template: InputTemplate, loss: Loss) -> FittedModel:
    """A fit around a trace of its own, for inputs in other shapes."""
    with covering(network, fit.subset.names(network)):
        traced = trace_for_fit(network, inputs, fit.traced.tracer)  # pyright: ignore[reportArgumentType]
        layout = output_layout(network, inputs, loss)
    fitted = dataclasses.replace(fit.fitted, outputs_per_sample=layout.size)
    same = {"places": fit.places, "prior_factor": fit.prior_factor}
    return FittedModel(traced, fitted, template, layout, loss, fit.watch, fit.subset, **same)


def _with_length(template: InputTemplate, length: int) -> InputTemplate:
    padding = template.padding
    assert padding is not None
    shapes = tuple(
        (length, *shape[1:]) if name in padding.names else shape
        for name, shape in zip(template.names, template.shapes, strict=True)
    )
    return dataclasses.replace(template, shapes=shapes, padding=dataclasses.replace(padding, length=length))


def _cut(layout: OutputLayout, axis: int, length: int) -> Shown:
    """Take off what was predicted for tokens that were filled up; ``axis`` is theirs in the model's outputs."""
    size = layout.size
    kept = torch.arange(size).reshape(layout.shape).narrow(axis - 1, 0, length).flatten()

    def cut(leaf: torch.Tensor) -> torch.Tensor:
        if tuple(leaf.shape[1:]) == layout.shape:
            return leaf.narrow(axis, 0, length)
        places = kept.to(leaf.device)  # of a covariance over flattened outputs
        for dim in (1, leaf.ndim - 1):
            leaf = leaf.index_select(dim, places)
        return leaf

    return lambda result: jax.tree.map(cut, result)
