"""What the core computed, held against torch on batches of the data itself."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import torch
from torch import nn

from bridge.independence import call
from bridge.losses import Loss
from bridge.one_example import CoreModel
from bridge.outputs import OutputLayout, single_output
from bridge.precision import in_float32
from bridge.reservoir import Reservoir
from bridge.template import InputTemplate
from bridge.tensors import to_jax, to_torch
from bridge.tracing import MismatchError, explain
from bridge.tracing.state import looking_at
from jax_core.data.batches import Batch, batch_size
from jax_core.likelihoods import Bernoulli, Categorical, Likelihood


class KeptBatches:
    """A check of batches that keeps the first one, one of the later ones, each as likely, and some samples of all.

    Attributes:
        kept: Their numbers, counting batches that hold samples, and the batches.
        samples: Some of all batches' samples.
    """

    def __init__(self, check: Callable[[int, Batch], None], seed: int = 0) -> None:
        """Wrap a check."""
        self._check, self._seed = check, seed
        self._begin()

    def _begin(self) -> None:
        self._random, self._seen = random.Random(self._seed), 0
        self.kept: list[tuple[int, Batch]] = []
        self.samples = Reservoir(self._seed)

    def __call__(self, number: int, batch: Batch) -> None:
        """Check a batch, and perhaps keep a copy."""
        self._check(number, batch)
        if number == 0:  # perhaps once more, where memory ran out before
            self._begin()
        if not batch_size(batch):
            return
        self.samples.add(batch)
        if self._seen == 0 or self._random.random() < 1 / self._seen:
            self.kept[1:] = []
            self.kept.append((self._seen, jax.tree.map(jnp.array, batch)))
        self._seen += 1


def torch_outputs(model: nn.Module, inputs: Any, shape: tuple[int, ...], template: InputTemplate) -> torch.Tensor:
    """The outputs ``(B, *shape)`` of a module in eval mode for a batch of arrays."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    batch = template.in_wide_integers(in_float32(jax.tree.map(lambda leaf: to_torch(leaf).to(device), inputs)))
    with looking_at(model), torch.no_grad():
        # of a batch of one squeeze() may have taken the batch axis
        return single_output(call(model, batch)).detach().cpu().reshape(-1, *shape)


def compare_losses(
    model: nn.Module,
    model_fn: CoreModel,
    likelihood: Likelihood,
    batches: Sequence[tuple[int, Batch]],
    losses: Any,
    template: InputTemplate,
) -> None:
    """Hold the losses that a fit has added up against those of torch's outputs.

    Args:
        model: The module that was traced.
        model_fn: It in JAX.
        likelihood: The loss.
        batches: Numbers of batches, and the batches.
        losses: What the fit has found for each batch.
        template: How the module takes inputs.

    Raises:
        MismatchError: Naming the batch, both figures, and the module in which the difference begins.
    """
    for number, batch in batches:
        outputs = to_jax(torch_outputs(model, batch.input, model_fn.layout.shape, template))
        alone = model_fn.without_data  # how outputs lie is all that is asked of it
        wanted, largest = _loss(alone, likelihood, outputs, batch.target)
        wanted, got = float(wanted), float(losses[number])
        relative, absolute = (1e-7, 1e-11) if outputs.dtype == jnp.float64 else (1e-3, 1e-5)
        if abs(got - wanted) > relative * abs(wanted) + absolute * outputs.size * max(1.0, float(largest)):
            raise MismatchError(
                f"On batch {number} of the loader the traced model's loss is {got:.6g}, torch's {wanted:.6g}: the "
                f"traced function is not the model there.{_first_difference(model, batch.input)} bridge.explain(model, "
                "inputs) tells more; register another lowering with @bridge.lowers, or leave the operator out."
            )


def compare_outputs(model: nn.Module, model_fn: CoreModel, params: Any, inputs: Any, template: InputTemplate) -> None:
    """Hold a traced model's outputs on a batch of arrays against torch's.

    Raises:
        MismatchError: With the difference.
    """
    wanted = torch_outputs(model, inputs, model_fn.layout.shape, template)
    ours = to_torch(jax.vmap(lambda x: model_fn(x, params))(inputs)).cpu()
    theirs = to_torch(model_fn.in_core(to_jax(wanted))).cpu()
    error = float((ours - theirs).norm() / theirs.norm().clamp_min(1e-30))
    if not error <= (1e-9 if wanted.dtype is torch.float64 else 1e-3):
        raise MismatchError(
            f"The model as traced at load differs from torch by {error:.1e} on this batch."
            f"{_first_difference(model, inputs)} Fit again on this version of torch and of the model's code."
        )


def warn_of_outputs(model: nn.Module, inputs: Any, loss: Loss, layout: OutputLayout) -> None:
    """Warn where the outputs on a batch are not what the likelihood takes: probabilities in the place of logits."""
    likelihood = loss.likelihood
    if not isinstance(likelihood, Categorical | Bernoulli) or loss.transform is not None:
        return
    if isinstance(likelihood, Categorical) and layout.core_shape[-1] == 1:
        warnings.warn(
            "The model has one output, and the softmax of one logit is always 1: there is nothing to classify. For "
            "two classes by one logit use likelihood='multilabel' with targets of zeros and ones.",
            stacklevel=5,
        )
        return
    with looking_at(model), torch.no_grad():
        outputs = single_output(call(model, inputs))
    if ((outputs < 0) | (outputs > 1)).any() or (outputs == outputs.reshape(-1)[:1]).all():
        return
    classes = outputs.sum(layout.class_axis if layout.class_axis is not None else -1)
    if isinstance(likelihood, Categorical) and torch.allclose(classes, torch.ones_like(classes), atol=1e-3):
        warnings.warn(
            "The model's outputs are probabilities (each row adds up to 1); classification takes logits, and the "
            "softmax of probabilities is nearly flat. Leave out the model's last softmax, or end in log_softmax with "
            "likelihood=nn.NLLLoss().",
            stacklevel=5,
        )
    elif isinstance(likelihood, Bernoulli):
        warnings.warn(
            "The model's outputs all lie between 0 and 1, like probabilities; several labels take logits. Leave out "
            "the model's last sigmoid, or use likelihood=nn.BCELoss().",
            stacklevel=5,
        )


@jax.jit
def _loss(model: CoreModel, likelihood: Likelihood, outputs: jax.Array, target: Any) -> tuple[jax.Array, jax.Array]:
    return likelihood.nll(model.in_core(outputs), target).sum(), jnp.abs(outputs).max(initial=0.0)


def _first_difference(model: nn.Module, inputs: Any) -> str:
    """Where the difference begins, if that can be told."""
    with contextlib.suppress(Exception):  # an explanation that fails must not hide what it was to explain
        batch = jax.tree.map(to_torch, inputs)
        rows = explain(model, tuple(batch) if isinstance(batch, list) else batch).rows
        first = next((row for row in rows if row.error is not None and row.error > 1e-4), None)
        if first is not None:
            return f" The difference begins in {first.module}."
    return ""
