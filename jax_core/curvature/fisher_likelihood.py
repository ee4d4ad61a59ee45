r"""Likelihoods whose curvature over the outputs is the Fisher's: outer products of gradients in the place of $H$.

What reduces a GGN reduces these with no change: $J_i^\top g_i g_i^\top J_i$ with $g_i$ the gradient of the loss over
the outputs, at the targets given (the empirical Fisher) or at drawn ones, whose expectation is the GGN of the named
likelihoods (Kunstner et al., 2019, arXiv:1905.12558).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_core.curvature.fisher import bits_of, rank_one
from jax_core.data.batches import Batch
from jax_core.data.passes import DerivedPasses, LoaderPasses
from jax_core.likelihoods import Categorical, Likelihood, Outputs, score
from jax_core.types import ModelFn, Params, pytree

Curvature = Literal["ggn", "empirical_fisher", "mc_fisher"]


@pytree
@dataclass(frozen=True)
class EmpiricalFisher:
    r"""A likelihood with $g_i g_i^\top$, $g_i = \nabla_f [-\log p(y_i \mid f_i)]$, in the place of its Hessian."""

    likelihood: Likelihood

    def nll(self, outputs: Outputs, target: Any) -> Float[Array, " B"]:
        """That of the likelihood."""
        return self.likelihood.nll(outputs, target)

    def hessian_mv(self, outputs: Outputs, target: Any, vector: Outputs) -> Outputs:
        r"""$g_i g_i^\top v_i$."""
        return rank_one(score(self.likelihood, outputs, target), vector)

    def sample(self, key: Array, outputs: Outputs) -> Any:
        """That of the likelihood."""
        return self.likelihood.sample(key, outputs)


@pytree
@dataclass(frozen=True)
class DrawnFisher:
    """The empirical Fisher of targets that come in pairs, a given one and one :class:`DrawnTargets` drew beside it."""

    likelihood: Likelihood

    def nll(self, outputs: Outputs, target: Any) -> Float[Array, " B"]:
        """That of the likelihood at the targets given."""
        return self.likelihood.nll(outputs, target[0])

    def hessian_mv(self, outputs: Outputs, target: Any, vector: Outputs) -> Outputs:
        r"""$g_i g_i^\top v_i$ at the drawn targets."""
        return rank_one(score(self.likelihood, outputs, target[1]), vector)

    def sample(self, key: Array, outputs: Outputs) -> Any:
        """That of the likelihood."""
        return self.likelihood.sample(key, outputs)


class DrawnTargets(DerivedPasses):
    """Passes whose targets are pairs: the one given, and one drawn from the model's own predictive distribution.

    The draws are a function of the key and of a batch's inputs, so that each pass shows the same.
    """

    def __init__(
        self, passes: LoaderPasses, model_fn: ModelFn, params: Params, likelihood: Likelihood, key: Array
    ) -> None:
        """Draw from ``likelihood`` at the outputs of ``model_fn(input, params)``, a compiled program's argument."""
        super().__init__(passes)
        self._draw = partial(_with_draws, model_fn, params, likelihood, key)

    def peek(self) -> Batch:
        """The first batch; the next pass goes on from there."""
        return self._draw(self._passes.peek())

    def __iter__(self) -> Iterator[Batch]:
        """One pass."""
        return map(self._draw, self._passes)

    def with_progress(self, label: str) -> Iterable[Batch]:
        """One pass with a progress bar where bars are wanted."""
        return map(self._draw, self._passes.with_progress(label))


def with_curvature(
    curvature: Curvature, model_fn: ModelFn, params: Params, likelihood: Likelihood, passes: LoaderPasses, key: Array
) -> tuple[Likelihood, LoaderPasses]:
    """The likelihood whose curvature over the outputs is the one asked for, and the batches that it takes."""
    if curvature == "mc_fisher":
        return DrawnFisher(likelihood), DrawnTargets(passes, model_fn, params, likelihood, key)
    return EmpiricalFisher(likelihood) if curvature == "empirical_fisher" else likelihood, passes


@jax.jit
def _with_draws(model_fn: Any, params: Params, likelihood: Likelihood, key: Array, batch: Batch) -> Batch:
    outputs = jax.vmap(lambda x: model_fn(x, params))(batch.input)
    drawn = likelihood.sample(jax.random.fold_in(key, bits_of(batch.input)), outputs)
    return Batch(batch.input, (batch.target, _still_ignored(likelihood, batch.target, drawn)))


def _still_ignored(likelihood: Likelihood, target: Any, drawn: Any) -> Any:
    """Draws without those at positions that the loss does not look at."""
    ignored = likelihood.ignore_index if isinstance(likelihood, Categorical) else None
    if ignored is None or jnp.issubdtype(jnp.asarray(target).dtype, jnp.inexact):
        return drawn
    return jnp.where(jnp.asarray(target).astype(drawn.dtype) == ignored, ignored, drawn)
