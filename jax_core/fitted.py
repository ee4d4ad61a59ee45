"""What a fit leaves behind."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import jax.numpy as jnp
from jaxtyping import Array

from jax_core.left_out import carried, left_out
from jax_core.likelihoods import Gaussian, Likelihood
from jax_core.lowrank.plan import Plan
from jax_core.operators import Operator, add
from jax_core.operators.short_repr import ShortRepr
from jax_core.posterior import gaussian_log_likelihood


@dataclass(frozen=True, repr=False)
class Fitted(ShortRepr):
    """A curvature and what the same data says about the evidence.

    Attributes:
        curvature: The reduced GGN, scaled to ``num_total_samples``.
        nll: Negative log-likelihood summed over the data, scaled alike.
        num_samples: Samples seen.
        num_total_samples: Samples they stand for.
        outputs_per_sample: Scalar outputs of one sample.
        plan: How a low rank was found, and why so.
        batch_nll: Negative log-likelihood of each batch seen, unscaled; empty for a fit that was read from a file.
        trace: Of the whole curvature, scaled alike; ``None`` where no pass has told it: a low rank by products with
            vectors, Kronecker factors alone, and files of earlier versions.
    """

    curvature: Operator
    nll: float
    num_samples: int
    num_total_samples: int
    outputs_per_sample: int
    plan: Plan | None
    batch_nll: tuple[float, ...] = field(default=(), repr=False)
    trace: float | None = None

    @property
    def left_out(self) -> float | None:
        """The share of the trace that the curvature's reduction does not carry (:mod:`jax_core.left_out`)."""
        return left_out(self.curvature, self.trace)

    @property
    def carried(self) -> dict[str, float | None]:
        """The share of the trace that its low rank carries, and its blocks."""
        return carried(self.curvature, self.trace)

    @property
    def num_outputs(self) -> int:
        """Scalar outputs that the total samples have."""
        return self.num_total_samples * self.outputs_per_sample

    def with_more(self, other: Fitted, *, rank: int | None = None) -> Fitted:
        """What a fit of both fits' data gives, as far as the structure of their curvatures and a low rank's allow.

        Raises:
            TypeError: If their curvatures have no sum.
        """
        return dataclasses.replace(
            other,
            curvature=add(self.curvature, other.curvature, rank=rank),
            nll=self.nll + other.nll,
            num_samples=self.num_samples + other.num_samples,
            num_total_samples=self.num_total_samples + other.num_total_samples,
            trace=None if self.trace is None or other.trace is None else self.trace + other.trace,
            batch_nll=self.batch_nll + other.batch_nll,
        )

    def log_likelihood(self, likelihood: Likelihood, sigma_noise: float | Array = 1.0) -> Array:
        r"""$\log p(\mathcal D \mid \theta^*)$, normalised by the noise where the likelihood is Gaussian."""
        if isinstance(likelihood, Gaussian):
            known = gaussian_log_likelihood(self.nll, self.num_outputs, sigma_noise)
            return (
                known if likelihood.noise is None else known - self.num_total_samples * jnp.log(likelihood.noise).sum()
            )
        return jnp.asarray(-self.nll)
