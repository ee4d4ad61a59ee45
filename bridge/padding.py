"""Token ids of several lengths at one: what is filled up, with what, and whether the model looks past it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import torch
from torch import nn
from torch.nn import functional as F

from bridge.arguments import is_array
from bridge.independence import call
from bridge.outputs import single_output
from bridge.tracing.comparison import norm
from bridge.tracing.state import looking_at
from jax_core.likelihoods import Categorical, Likelihood

MASK = "attention_mask"
_ZEROS = {MASK, "token_type_ids", "position_ids"}
_SAMPLES = 16  # on which the model is run with and without padding
_SHORTEST = 8  # of the lengths that programs are made for
_REMEDY = "Pad to one length in the tokenizer or the collator, as with padding='max_length' and max_length=."


@dataclass(frozen=True)
class Padding:
    """Inputs along a sequence with an attention mask, and what fills shorter ones up.

    Attributes:
        names: Of the inputs ``(B, L, ...)``.
        fills: What each is filled up with: the padding token, zero for the mask.
        length: That all batches of a fit have.
        target: What fills up targets per token; ``None`` where targets have no tokens.
        limit: Tokens that the model takes at most, if it says so.
    """

    names: tuple[str, ...]
    fills: tuple[int, ...]
    length: int
    target: int | None = None
    limit: int | None = None

    @classmethod
    def of(cls, model: nn.Module, inputs: Any) -> Padding | None:
        """Of a batch of keyword inputs, or of one mapping; ``None`` for those without a mask ``(B, L)``."""
        held = _held(inputs)
        mask = held.get(MASK)
        if not isinstance(mask, torch.Tensor) or mask.ndim != 2:
            return None
        shape = mask.shape
        along = [name for name, tensor in held.items() if tensor.shape[:2] == shape]
        token = _setting(model, "pad_token_id") or 0
        limit = _setting(model, "max_position_embeddings") or _setting(model, "n_positions")
        fills = tuple(0 if name in _ZEROS or held[name].is_floating_point() else token for name in along)
        return cls(tuple(along), fills, shape[1], limit=limit)

    @classmethod
    def of_record(cls, record: dict[str, Any] | None) -> Padding | None:
        """From the lists that a file holds in the place of tuples."""
        if record is None:
            return None
        return cls(**{**record, "names": tuple(record["names"]), "fills": tuple(record["fills"])})

    def length_of(self, inputs: Any) -> int | None:
        """The tokens of a batch; ``None`` where it has no mask."""
        mask: Any = _held(inputs).get(MASK)
        return mask.shape[1] if is_array(mask) and mask.ndim == 2 else None

    def filled(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """An input at full length, if it is one along the sequence."""
        if name not in self.names:
            return tensor
        return self._filled(tensor, self.fills[self.names.index(name)])

    def filled_target(self, target: Any, length: int | None) -> Any:
        """Targets per token at full length."""
        if self.target is None or not is_array(target) or target.ndim != 2 or target.shape[1] != length:
            return target
        return self._filled(torch.as_tensor(target), self.target)

    def _filled(self, tensor: torch.Tensor, value: int) -> torch.Tensor:
        missing = self.length - tensor.shape[1]
        if missing < 0:
            raise ValueError(
                f"A batch holds sequences of {tensor.shape[1]} tokens, and the longest of the fit had {self.length}. "
                f"{_REMEDY}"
            )
        beside = (0, 0) * (tensor.ndim - 2)
        return F.pad(tensor, (*beside, 0, missing), value=value) if missing else tensor

    def size_for(self, length: int) -> int:
        """The length of the program for sequences: a power of two, or the fit's own or the model's longest."""
        size = max(_SHORTEST, 1 << (length - 1).bit_length())
        bound = self.length if length <= self.length else self.limit
        return size if bound is None else max(length, min(size, bound))


def longest(loader: Iterable[Any], reader: Any, padding: Padding, budget: float) -> tuple[Padding, Iterable[Any], Any]:
    """The padding to the longest batch, a loader that shows all batches again, and the inputs of a shortest one.

    What is read is kept within the budget, so that the loader is read once.
    """
    kept: list[Any] | None = []
    shortest: Any = None
    least, most, used = None, 0, 0
    rest: Iterator[Any] = iter(loader)
    for given in rest:
        inputs = reader(given).input
        length = padding.length_of(inputs)
        if length is not None:
            most = max(most, length)
            if least is None or length < least:
                least, shortest = length, inputs
        used += sum(leaf.nbytes for leaf in jax.tree.leaves(_plain(given)) if is_array(leaf))
        if kept is not None:
            kept.append(given)
            if used > budget:
                if isinstance(loader, Iterator):  # shown once: what comes later is refused if it is longer
                    return replace(padding, length=most), itertools.chain(kept, rest), shortest
                kept = None
    return replace(padding, length=most), loader if kept is None else kept, shortest


def check_padding(model: nn.Module, short: Any, full: Any) -> int | None:
    """The axis of the outputs along the tokens, ``None`` where they have none; the model looks past padding.

    Raises:
        ValueError: If it does not.
    """
    few = jax.tree.map(lambda leaf: leaf[:_SAMPLES], (short, full))
    with looking_at(model), torch.no_grad():
        alone, padded = (single_output(call(model, inputs)) for inputs in few)
    mask = _held(few[0])[MASK]
    axes = [i for i, (m, n) in enumerate(zip(alone.shape, padded.shape, strict=True)) if m != n]
    if axes:
        padded = padded.narrow(axes[0], 0, alone.shape[axes[0]])
        real = mask.bool().reshape(-1)
        alone, padded = (x.movedim(axes[0], 1).flatten(0, 1)[real] for x in (alone, padded))
    error = norm(alone - padded) / max(norm(alone), 1e-30)
    if not error <= (1e-9 if alone.dtype is torch.float64 else 1e-4):
        raise ValueError(
            f"Batches have sequences of several lengths, and padding them to one changes the model's outputs by "
            f"{error:.1e} of their size, although {MASK} is zero there: the model looks at padded tokens. {_REMEDY}"
        )
    return axes[0] if axes else None


def fill_of_targets(likelihood: Likelihood) -> int:
    """What marks a target per token as one that does not count.

    Raises:
        ValueError: If the likelihood counts all.
    """
    if isinstance(likelihood, Categorical) and likelihood.ignore_index is not None:
        return likelihood.ignore_index
    raise ValueError(
        "Batches have sequences of several lengths, and the outputs are per token: padded ones must not count. Use "
        f"likelihood=jax_core.Categorical(ignore_index=-100). {_REMEDY}"
    )


def _held(inputs: Any) -> Mapping[str, Any]:
    if isinstance(inputs, tuple) and len(inputs) == 1:
        inputs = inputs[0]
    return inputs if isinstance(inputs, Mapping) else {}


def _plain(given: Any) -> Any:
    return dict(given) if isinstance(given, Mapping) else given


def _setting(model: nn.Module, name: str) -> int | None:
    """A whole number in a configuration of the model, or of one inside it."""
    for module in model.modules():
        value = getattr(getattr(module, "config", None), name, None)
        if isinstance(value, int):
            return value
    return None
