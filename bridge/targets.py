"""What targets must be to go with a model's outputs and a likelihood."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bridge.losses import Loss
from bridge.outputs import OutputLayout
from bridge.tracing.errors import first_line
from jax_core.data.batches import Batch, batch_size
from jax_core.likelihoods import (
    Bernoulli,
    Categorical,
    Custom,
    Gaussian,
    Heteroscedastic,
    Likelihood,
    Poisson,
    Unweighted,
)


@dataclass(frozen=True)
class TargetCheck:
    """A check of each batch's targets: kind, shape, values.

    Attributes:
        loss: What they are for.
        layout: Of the model's outputs.
    """

    loss: Loss
    layout: OutputLayout

    def __call__(self, number: int, batch: Batch) -> None:
        """Check a batch of arrays.

        Raises:
            TypeError: If the targets are of another kind than the likelihood takes.
            ValueError: If their shape or a value does not fit.
        """
        likelihood: Likelihood = self.loss.likelihood
        if isinstance(likelihood, Unweighted):
            return  # looks at no target
        count = batch_size(batch)
        self._check_length(number, batch.target, count)
        if isinstance(likelihood, Categorical):
            target = _one_array(number, batch.target)
            if target.dtype.kind in "iu":
                self._check_indices(number, target, likelihood)
            else:
                self._check_probabilities(number, target)
        elif isinstance(likelihood, Custom):
            self._check_loss(number, batch.target, likelihood)
        elif isinstance(likelihood, Gaussian | Bernoulli | Poisson | Heteroscedastic):
            target = _one_array(number, batch.target)
            self._check_values(number, target, self._predicted_shape(likelihood))
            _check_range(number, target, likelihood)

    def _check_loss(self, number: int, target: Any, likelihood: Custom) -> None:
        """That a loss of the user's own takes a sample's outputs and target, and gives one number."""
        output = jax.ShapeDtypeStruct(self.layout.core_shape, jnp.zeros(()).dtype)
        one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], jnp.asarray(leaf).dtype), target)
        name = getattr(likelihood.loss, "__qualname__", type(likelihood.loss).__name__)
        what = f"{name}(output, target) of one sample, an output of shape {output.shape} and the target {_shapes(one)},"
        try:
            found = jax.eval_shape(likelihood.loss, output, one)
        except Exception as error:  # whatever the user's own code raises
            raise TypeError(
                f"The loss {what} fails on batch {number}: {type(error).__name__}: {first_line(error)} "
                "It is given arrays of JAX, without the batch's axis: write it in jax.numpy. Torch's loss modules are "
                "taken as they are, as likelihood=nn.CrossEntropyLoss()."
            ) from error
        if getattr(found, "shape", None) != ():
            raise TypeError(
                f"The loss {what} gives {_shapes(found)} on batch {number}. Return one number for a sample: a sum over "
                "its outputs."
            )

    def _check_length(self, number: int, target: Any, count: int) -> None:
        leaves = jax.tree.leaves(target)
        if not leaves:
            raise TypeError(f"Batch {number} holds no target. Yield (input, target) pairs, or pass to_batch=.")
        for leaf in leaves:
            if np.ndim(leaf) == 0 or np.shape(leaf)[0] != count:
                raise ValueError(
                    f"Batch {number} holds {count} inputs and targets of shape {np.shape(leaf)}. "
                    "Give one target a sample."
                )

    def _check_indices(self, number: int, target: np.ndarray, likelihood: Categorical) -> None:
        wanted = self.layout.core_shape[:-1]
        if target.shape[1:] != wanted:
            raise ValueError(
                f"Batch {number} holds class indices of shape {target.shape}; {self._axes()} take them in shape "
                f"{_shown(wanted)}. {self._remedy_for_indices(target.shape[1:])}"
            )
        last = self.loss.class_axis is None
        remedy = "jax_core.Categorical(ignore_index={})" if last else "nn.CrossEntropyLoss(ignore_index={})"
        _check_classes(number, target, self.layout.core_shape[-1], likelihood.ignore_index, remedy)

    def _check_probabilities(self, number: int, target: np.ndarray) -> None:
        _check_numbers(number, target)
        if target.shape[1:] != self.layout.core_shape:
            raise TypeError(
                f"Batch {number} holds {target.dtype} targets of shape {target.shape}; classification takes integer "
                f"class indices, or probabilities of shape {_shown(self.layout.core_shape)}. Call target.long()."
            )
        _check_finite(number, target)

    def _predicted_shape(self, likelihood: Likelihood) -> tuple[int, ...]:
        """Of one sample's targets: one for each output, or beside log-variances for each mean."""
        shape = self.layout.shape
        if not isinstance(likelihood, Heteroscedastic):
            return shape
        if not shape or shape[-1] % 2:
            raise ValueError(
                f"The model's outputs of shape {_shown(shape)} cannot be halved on the last axis. A heteroscedastic "
                "regression returns the means of all targets and then the logarithms of their variances there."
            )
        return (*shape[:-1], shape[-1] // 2)

    def _check_values(self, number: int, target: np.ndarray, wanted: tuple[int, ...]) -> None:
        _check_numbers(number, target)
        _check_finite(number, target)
        given = target.shape[1:]
        flat = len(given) == 1 and given[0] == math.prod(wanted)
        if not flat and _without_ones(given) != _without_ones(wanted):
            raise ValueError(
                f"Batch {number} holds targets of shape {target.shape} where the model predicts {_shown(wanted)}. "
                "Give one target value per output, in the same order of axes."
            )

    def _axes(self) -> str:
        place = "axis 1, as torch's loss modules have them" if self.loss.class_axis == 1 else "the last axis"
        return f"outputs of shape {_shown(self.layout.shape)} with their classes on {place},"

    def _remedy_for_indices(self, given: tuple[int, ...]) -> str:
        """What to change: the axis of the classes, an axis of ones, or the targets."""
        shape, wanted = self.layout.shape, self.layout.core_shape[:-1]
        if len(shape) > 1 and self.loss.class_axis == 1 and given == shape[:-1]:
            return "They fit classes on the last axis: use likelihood='classification' for that."
        if len(shape) > 1 and self.loss.class_axis is None and given == shape[1:]:
            return "They fit classes on axis 1: use likelihood=nn.CrossEntropyLoss() for that."
        if given == (*wanted, 1):
            return "Call target.squeeze(-1)."
        if given == shape:
            axis = self.loss.class_axis or -1
            return f"Call target.argmax({axis}) on indicators of classes, or target.float() to give probabilities."
        return "Give one index for each place that has classes, or probabilities of the outputs' shape."


def _one_array(number: int, target: Any) -> np.ndarray:
    leaves = jax.tree.leaves(target)
    if len(leaves) != 1 or isinstance(target, dict | tuple | list):
        raise TypeError(
            f"Batch {number} holds targets in a {type(target).__name__} of {len(leaves)}; this likelihood takes one. "
            "jax_core.Custom(loss) takes targets of any structure; to_batch= can pick one."
        )
    return np.asarray(leaves[0])


def _check_numbers(number: int, target: np.ndarray) -> None:
    if target.dtype.kind not in "fiub" and target.dtype.name != "bfloat16":
        raise TypeError(f"Batch {number} holds targets of type {target.dtype}. Give numbers.")


def _check_finite(number: int, target: np.ndarray) -> None:
    values = target.astype(np.float32) if target.dtype.name == "bfloat16" else target
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError(f"Batch {number} of the loader holds NaN or infinite targets. Remove those samples first.")


def _check_range(number: int, target: np.ndarray, likelihood: Likelihood) -> None:
    if isinstance(likelihood, Bernoulli) and target.size and (target.min() < 0 or target.max() > 1):
        raise ValueError(
            f"Batch {number} holds labels from {target.min()} to {target.max()}; multi-label targets are "
            "zeros and ones (or probabilities). Use 'classification' for class indices."
        )
    if isinstance(likelihood, Poisson) and target.size and target.min() < 0:
        raise ValueError(f"Batch {number} holds the count {target.min()}. Counts are not negative.")


def _check_classes(number: int, target: np.ndarray, classes: int, ignore_index: int | None, remedy: str) -> None:
    target = target.astype(np.int64)  # an unsigned byte would take ignore_index=-100 for class 156
    counted = target if ignore_index is None else target[target != ignore_index]
    wrong = counted[(counted < 0) | (counted >= classes)]
    if wrong.size:
        raise ValueError(
            f"Batch {number} holds class {wrong.flat[0]}, but the model has {classes} outputs: targets must be from 0 "
            f"to {classes - 1}. Count classes from zero; if it marks what is not counted, as padded tokens, set "
            f"likelihood={remedy.format(wrong.flat[0])}."
        )


def _shapes(tree: Any) -> str:
    """Shapes of what is held, in its structure."""
    return str(jax.tree.map(lambda leaf: tuple(getattr(leaf, "shape", ())), tree))


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)


def _shown(shape: tuple[int, ...]) -> str:
    return f"({', '.join(('batch', *map(str, shape)))}{',' if not shape else ''})"
