"""A Laplace as any module is kept: in a state dict, pickled, copied."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from bridge.checkpoint import check_description, restore, to_bytes
from bridge.fitting import FittedModel
from bridge.hyperparameters import Hyperparameters
from bridge.serialization import unpack
from bridge.state import LaplaceState
from bridge.weights import WeightWatch

_NOTHING = torch.zeros(0, dtype=torch.uint8)


class KeptLaplace(LaplaceState):
    """A Laplace whose posterior is in its state dict and in its pickle, as the bytes of a file.

    Programs are left behind; the model is traced again where the posterior is first needed.
    """

    def __init__(self, *description: Any, **hyperparameters: Any) -> None:
        """Keep the description, see :class:`~bridge.description.Description`."""
        super().__init__(*description, **hyperparameters)
        self._record: bytes | None = None

    @property
    def is_fitted(self) -> bool:
        """Whether there is a posterior."""
        return super().is_fitted or self._record is not None

    def adopt(self, fit: FittedModel, hyper: Hyperparameters, *, verified: bool = True) -> None:
        """Take a fit for one's own, in the place of whatever was kept."""
        super().adopt(fit, hyper, verified=verified)
        self._record = None

    def _take_up(self) -> None:
        if self._record is not None:
            restore(unpack(self._record, "What was kept of this Laplace"), self)

    def get_extra_state(self) -> torch.Tensor:
        """The posterior as bytes, for ``state_dict``; empty before ``fit``."""
        return torch.frombuffer(bytearray(self._kept_bytes() or b""), dtype=torch.uint8) if self.is_fitted else _NOTHING

    def set_extra_state(self, state: torch.Tensor) -> None:
        """Take the posterior of a state dict, once the weights are loaded too."""
        self._record = state.numpy().tobytes() if state.numel() else self._record

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights and posterior.

        Raises:
            ValueError: If the posterior is of another likelihood, structure or set of parameters, before anything is
                changed.
        """
        extra = state_dict.get("_extra_state")
        if isinstance(extra, torch.Tensor) and extra.numel():
            check_description(unpack(extra.numpy().tobytes(), "The state dict"), self)
        result = super().load_state_dict(state_dict, strict=strict, assign=assign)
        if self._record is not None:
            self.fit_result(check_weights=False)
        return result

    def _kept_bytes(self) -> bytes | None:
        if self._record is not None or self._fit is None:
            return self._record
        return to_bytes(self)

    def __getstate__(self) -> dict[str, Any]:
        """For pickle: programs are left behind, and traced again where they are needed."""
        return {**self.__dict__, "_fit": None, "_posterior": None, "_record": self._kept_bytes()}

    def __deepcopy__(self, memo: dict[int, Any]) -> LaplaceState:
        """A copy with a model of its own; the fit, which never changes, is shared."""
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        shared = {"_fit", "_posterior", "loss_fn", "options", "reading", "subset", "order", "_hyper", "_record"}
        new.__dict__.update({k: v if k in shared else copy.deepcopy(v, memo) for k, v in self.__dict__.items()})
        if new._fit is not None:
            new._fit = dataclasses.replace(new._fit, watch=WeightWatch(new.model))
        return new
