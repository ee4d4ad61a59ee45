"""What every way of reading a curvature from a loader is bound to."""

from __future__ import annotations

from jax_core.data.checkpoint import Checkpoint
from jax_core.data.passes import LoaderPasses
from jax_core.likelihoods import Likelihood
from jax_core.types import ModelFn, Params


class Stream:
    """A model and its loss on a loader."""

    def __init__(
        self,
        model_fn: ModelFn,
        params: Params,
        likelihood: Likelihood,
        passes: LoaderPasses,
        *,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        """Bind a model and its loss to a loader.

        Args:
            model_fn: For one example; its bound arrays become arguments of the compiled programs.
            params: Where to linearise.
            likelihood: The loss.
            passes: The data.
            checkpoint: Where the running result of a single pass is kept.
        """
        self.model_fn, self.params, self.likelihood, self.passes = model_fn, params, likelihood, passes
        self._checkpoint = checkpoint
