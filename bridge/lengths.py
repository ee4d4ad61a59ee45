"""Loaders whose batches have sequences of several lengths, brought to the longest."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from torch import nn

from bridge.dataloader import BatchReader
from bridge.padding import Padding, check_padding, fill_of_targets, longest
from bridge.placement import on_device
from bridge.precision import in_float32
from bridge.template import InputTemplate
from jax_core.likelihoods import Likelihood


def to_one_length(
    model: nn.Module, inputs: Any, loader: Iterable[Any], reader: BatchReader, budget: float, likelihood: Likelihood
) -> tuple[InputTemplate, Any, Iterable[Any]]:
    """What the model takes of each batch, the first batch so, and a loader that shows all of them again.

    Sequences with an attention mask are filled up to the longest of the loader, which is read for that; what it shows
    is kept within the budget. That the model looks past what is filled up is seen on the shortest batch.

    Args:
        model: In float32.
        inputs: Of the first batch, as the model takes them.
        loader: The data.
        reader: Of its batches.
        budget: Bytes of batches that may be kept.
        likelihood: Of outputs that may be per token.

    Raises:
        ValueError: If filling up changes the outputs, or the likelihood would count what is filled up.
    """
    template = InputTemplate.of(inputs)
    padding = Padding.of(model, inputs)
    if padding is None:
        return template, inputs, loader
    found, loader, shortest = longest(loader, reader, padding, budget)
    padding = dataclasses.replace(found, length=max(found.length, padding.length))

    def padded(padding: Padding) -> InputTemplate:
        full = dataclasses.replace(template, padding=padding)
        return dataclasses.replace(InputTemplate.of(full.taken_from(inputs)), padding=padding)

    length = padding.length_of(shortest)
    if length is not None and length < padding.length:
        short = on_device(model, in_float32(template.taken_from(shortest)))
        axis = check_padding(model, short, padded(padding).taken_from(short))
        if axis is not None:
            padding = dataclasses.replace(padding, target=fill_of_targets(likelihood))
    full = padded(padding)
    return full, full.taken_from(inputs), loader
