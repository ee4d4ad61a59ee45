r"""The linearised predictive $f(x) \sim \mathcal N(f_{\theta^*}(x), J \Sigma J^\top)$ (Immer et al., arXiv:2008.08400).

The covariance is exact: the Jacobian of each example is materialised a few examples at a time, and for a low-rank
posterior $J \Sigma J^\top = (J J^\top - (JU) \operatorname{diag}(\tfrac{m}{1+m}) (JU)^\top) / \tau$, not sampled; other
structures are a few products likewise (see :class:`~jax_core.operators.Projection`).
Layers whose matrices meet few vectors of an example stay in factors there (see :mod:`jax_core.gradients.factored`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from jax.tree_util import Partial
from jaxtyping import Array, Float

from jax_core.gradients.jacobian_maps import map_forms, map_jacobians
from jax_core.gradients.walk import OfBatches
from jax_core.posterior import Posterior
from jax_core.types import ModelFn, pytree
from jax_core.xla.compiled import as_jit_argument
from jax_core.xla.precision import full_precision


class GaussianOutputs(NamedTuple):
    """Mean ``(B, C)`` and covariance ``(B, C, C)`` of the outputs."""

    mean: Float[Array, "B C"]
    covariance: Float[Array, "B C C"]

    def divided(self, temperature: Array | float) -> GaussianOutputs:
        r"""Those of $f / T$ (temperature scaling; Guo et al., 2017, arXiv:1706.04599)."""
        return GaussianOutputs(self.mean / temperature, self.covariance / temperature**2)


def linearized_predictive(
    model_fn: ModelFn, posterior: Posterior, finish: Callable[[GaussianOutputs], Any] | None = None
) -> OfBatches:
    """Make the function from a batch of inputs to mean and exact covariance of the outputs.

    Args:
        model_fn: ``model_fn(input, params)`` for one example.
        posterior: Of any structure.
        finish: Applied to each chunk's :class:`GaussianOutputs` inside the program, a link for instance; it keeps the
            leading axis. By default mean and covariance are returned.
    """
    ending = as_jit_argument(finish or _unchanged)
    if posterior.subspace is None:
        return map_jacobians(model_fn, posterior.mean, Partial(_from_rows, ending, posterior.output_form))
    return map_forms(model_fn, posterior.mean, posterior.subspace, Partial(_from_forms, ending))


def joint_predictive(
    model_fn: ModelFn, posterior: Posterior, finish: Callable[[GaussianOutputs], Any] | None = None
) -> OfBatches:
    r"""Make the function from a batch of inputs to mean ``(B, C)`` and joint covariance ``(B, C, B, C)``.

    $\operatorname{cov}(f_a(x_i), f_b(x_j)) = J_{ia} \Sigma J_{jb}^\top$: what averages, differences and rankings of
    predictions need. All rows of the batch are held at once, ``B C P`` numbers.

    Args:
        model_fn: ``model_fn(input, params)`` for one example.
        posterior: Of any structure.
        finish: Applied to mean and joint covariance. By default they are returned.
    """
    rows_of = map_jacobians(model_fn, posterior.mean, _pair, fitted=True)
    ending = as_jit_argument(finish or _unchanged)
    return OfBatches(lambda example: _Joint(rows_of.bind(example), posterior.output_form, ending))


@pytree
@dataclass(frozen=True)
class _Joint:
    """All outputs of a batch together, from the rows of all."""

    rows_of: Callable[[Any], tuple[Array, Array]]
    form: Callable[[Array], Array]
    finish: Callable[[GaussianOutputs], Any]

    def __call__(self, inputs: Any) -> Any:
        return _joined(self.form, self.finish, *self.rows_of(inputs))


@jax.jit
@full_precision
def _joined(form: Callable[[Array], Array], finish: Callable[[GaussianOutputs], Any], mean: Array, rows: Array) -> Any:
    flat = form(rows.reshape(-1, rows.shape[-1]))
    return finish(GaussianOutputs(mean, flat.reshape(*mean.shape, *mean.shape)))


def _pair(outputs: Array, rows: Array) -> tuple[Array, Array]:
    return outputs, rows


def _from_rows(finish: Callable[..., Any], form: Callable[[Array], Array], mean: Array, rows: Array) -> Any:
    return finish(GaussianOutputs(mean, form(rows)))


def _from_forms(finish: Callable[..., Any], mean: Array, covariance: Array) -> Any:
    return finish(GaussianOutputs(mean, covariance))


def _unchanged(outputs: GaussianOutputs) -> GaussianOutputs:
    return outputs
