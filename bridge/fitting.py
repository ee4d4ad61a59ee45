"""From a torch module and its loader to a reduced curvature: check, trace, read, reduce, compare."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from torch import nn

from bridge.against_torch import KeptBatches, compare_losses, warn_of_outputs
from bridge.dataloader import BatchReader, ToBatch, check_inputs, first_inputs, passes_over, read_first
from bridge.failing import reason
from bridge.fitted_model import FittedModel
from bridge.hyperparameters import Hyperparameters, Value
from bridge.independence import output_shapes
from bridge.lengths import to_one_length
from bridge.losses import Loss, describe
from bridge.one_example import model_and_params
from bridge.outputs import OutputLayout
from bridge.parameter_order import ParameterOrder
from bridge.placement import compiling_for, on_device, place_of
from bridge.precision import in_float32
from bridge.retrace import described, refreshed
from bridge.some_samples import some_samples
from bridge.subset import Subset, covering
from bridge.targets import TargetCheck
from bridge.template import InputTemplate
from bridge.tracing import MismatchError, TracedModel, trace
from bridge.tracing.checks import unwrap
from bridge.tracing.errors import ForwardError
from bridge.weights import WeightWatch, digest
from jax_core.data.batches import Batch
from jax_core.data.checkpoint import Checkpoint
from jax_core.data.passes import Cache, LoaderPasses
from jax_core.data.trees import on_device_of
from jax_core.fit import FitOptions, fit_curvature
from jax_core.likelihoods import Categorical, Gaussian

Tracer: TypeAlias = Literal["export", "torch2jax", "auto"]


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How model and loader are read: the tracer, the cache of ``LoaderPasses``, and whether progress is shown.

    The keys are those of :class:`~bridge.dataloader.BatchReader`; of ``n_subset`` samples alone, where they are few.
    """

    tracer: Tracer = "export"
    cache: Cache = "auto"
    cache_bytes: int = 2**31
    progress: bool = True
    dict_key_x: str | None = None
    dict_key_y: str | None = None
    n_subset: int | None = None

    @property
    def budget(self) -> float:
        """Bytes of batches that may be kept."""
        return {"auto": self.cache_bytes, "memory": float("inf"), "none": 0}[self.cache]

    def reader(self, to_batch: ToBatch | None, template: InputTemplate | None = None) -> BatchReader:
        """What reads a batch of a loader."""
        return BatchReader(to_batch, self.dict_key_x, self.dict_key_y, template)


def fit_module(
    model: nn.Module,
    loader: Iterable[Any],
    loss: Loss,
    options: FitOptions,
    reading: ReadOptions,
    hyper: Hyperparameters,
    subset: Subset,
    *,
    seed: int,
    num_total_samples: int | None,
    to_batch: ToBatch | None,
    checkpoint: str | Path | None,
    before: FittedModel | None = None,
) -> FittedModel:
    """Check what was asked for, trace the model, read the data, reduce the curvature, compare with torch.

    The trace of an earlier fit is taken up where the model differs from that in its weights alone.

    Raises:
        ValueError: If data or rank do not fit the model.
        TypeError: If batches or targets are of the wrong type.
        TraceError: If the model cannot be traced, or samples of a batch see one another.
        MismatchError: If the traced model is not the torch model.
    """
    what = (model, loader, loss, options, reading, hyper, subset)
    how = {"seed": seed, "num_total_samples": num_total_samples, "to_batch": to_batch, "checkpoint": checkpoint}
    try:
        return _fit(*what, **how, before=before)
    except MismatchError:
        if before is None or isinstance(loader, Iterator):
            raise
    return _fit(*what, **how)  # of a trace that is not kept


def _fit(
    model: nn.Module,
    loader: Iterable[Any],
    loss: Loss,
    options: FitOptions,
    reading: ReadOptions,
    hyper: Hyperparameters,
    subset: Subset,
    *,
    seed: int,
    num_total_samples: int | None,
    to_batch: ToBatch | None,
    checkpoint: str | Path | None,
    before: FittedModel | None = None,
) -> FittedModel:
    reader = reading.reader(to_batch)
    prior_factor = 1.0
    if reading.n_subset is not None:
        loader, total = some_samples(loader, reading.n_subset, seed)
        prior_factor = total / reading.n_subset
    first, loader = read_first(loader, reader)
    network = in_float32(unwrap(model))
    inputs = on_device(network, in_float32(first_inputs(network, first.input)))
    template, inputs, loader = to_one_length(network, inputs, loader, reader, reading.budget, loss.likelihood)
    subset = subset.found(network, inputs)
    order, places = subset.order(model), subset.places(model)

    with covering(network, subset.names(network)):
        look = (template, reading.tracer, described(network))
        traced = None if before is None or before.look != look else refreshed(before.traced, network)
        if traced is None or before is None:
            before = None
            try:
                traced = trace_for_fit(network, inputs, reading.tracer)
            except ForwardError as error:
                raise ForwardError(f"{error}{reason(unwrap(model), network, first.input, inputs)}") from error
            layout = output_layout(network, inputs, loss)
        else:
            layout = before.layout
    loss = with_noise(loss, hyper.sigma_noise, layout)
    model_fn, params = model_and_params(traced, layout, loss, places)
    if before is None:
        warn_of_outputs(network, inputs, loss, layout)

    batches = KeptBatches(batch_check(traced, loss, layout), seed)
    reader = reading.reader(to_batch, template)
    passes = checked_passes(loader, traced, batches, reading, reader)
    passes.preload()
    kept = None
    if checkpoint is not None:
        kept = Checkpoint(checkpoint, identity(model, order, loss, layout, options, seed))

    with compiling_for(place_of(traced.params)):
        key = jax.random.key(seed)
        what = (model_fn, params, loss.likelihood, passes, options)
        fitted = fit_curvature(*what, key=key, num_total_samples=num_total_samples, checkpoint=kept)
        compare_losses(network, model_fn, loss.likelihood, batches.kept, fitted.batch_nll, template)
    seen = on_device_of(traced.params, batches.samples.batches())
    streamed = dataclasses.replace(reading, cache="none")  # a single pass has no use for what it keeps
    anew = partial(checked_passes, loader, traced, batch_check(traced, loss, layout), streamed, reader)
    again = () if isinstance(loader, Iterator) else (anew,)
    known = (look, seen, places, prior_factor, again)
    return FittedModel(traced, fitted, template, layout, loss, WeightWatch(model), subset, *known)


def identity(
    model: nn.Module, order: ParameterOrder, loss: Loss, layout: OutputLayout, options: FitOptions, seed: int
) -> str:
    """What the state of a fit depends on beside the data, as a hash."""
    how = dataclasses.replace(options, progress=False)  # a bar changes nothing
    noise = getattr(loss.likelihood, "noise", None)
    parts = (
        digest(model),
        order,
        describe(loss.likelihood),
        noise,
        loss.class_axis,
        layout,
        how,
        seed,
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def trace_for_fit(model: nn.Module, inputs: Any, tracer: Tracer, *, verify: bool = True) -> TracedModel:
    """The model as traced on two inputs, with weights of its own: those of the module may be trained on."""
    example = on_device(model, jax.tree.map(lambda leaf: leaf[:2], inputs))
    traced = trace(model, example, tracer=tracer, verify=verify)
    params, buffers = _copy((traced.params, traced.buffers))
    return dataclasses.replace(traced, params=params, buffers=buffers)


def output_layout(model: nn.Module, inputs: Any, loss: Loss) -> OutputLayout:
    """How the model's outputs lie, from running it on some inputs; their samples do not see one another.

    Raises:
        TraceError: If they do, or axis 0 of the outputs is not the batch.
        ValueError: If outputs have no axis of classes where the loss wants one.
    """
    whole, one = output_shapes(model, inputs)
    shape = whole[1:]
    if isinstance(loss.likelihood, Categorical) and not shape:
        raise ValueError(
            f"The model gives outputs of shape {whole}, without an axis of classes. For two classes by one logit use "
            "likelihood='multilabel' (or nn.BCEWithLogitsLoss()) with targets of zeros and ones."
        )
    return OutputLayout(shape, loss.class_axis, None if one == (1, *shape) else one)


def with_noise(loss: Loss, noise: Value, layout: OutputLayout) -> Loss:
    """The loss with noise that differs between outputs.

    Raises:
        ValueError: If there is not one number for each output.
    """
    if isinstance(noise, float | int):
        return loss
    if noise.size != layout.size:
        raise ValueError(
            f"sigma_noise of shape {noise.shape}: give one number, or one for each of a sample's {layout.size} outputs "
            f"(shape {layout.shape})."
        )
    return dataclasses.replace(loss, likelihood=Gaussian(jnp.asarray(noise.reshape(layout.shape))))


def batch_check(traced: TracedModel, loss: Loss, layout: OutputLayout) -> Callable[[int, Batch], None]:
    """What every batch must satisfy: the traced inputs' shapes, finite values, targets that fit the loss."""
    shapes = [spec.shape[1:] for spec in traced.inputs]
    check_target = TargetCheck(loss, layout)

    def check(number: int, batch: Batch) -> None:
        check_inputs(shapes, number, batch)
        check_target(number, batch)

    return check


def checked_passes(
    loader: Iterable[Any],
    traced: TracedModel,
    check: Callable[[int, Batch], None],
    reading: ReadOptions,
    reader: BatchReader,
) -> LoaderPasses:
    """Passes over a loader, whose batches are checked as they are read the first time."""
    return passes_over(
        loader,
        check,
        reader=reader,
        params=traced.params,
        cache=reading.cache,
        cache_bytes=reading.cache_bytes,
        progress=reading.progress,
    )


@jax.jit
def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)
