"""What a reduction leaves out of a curvature, by its trace."""

from __future__ import annotations

import warnings

import jax.numpy as jnp

from jax_core.likelihoods import Custom, Likelihood
from jax_core.operators import BlockLowRank, LowRank, Operator

MUCH = 0.3
"""Share of the trace from which a plain low rank is warned of: predictive variances are several times too wide then.

The tutorial's network, 256 digits (median variance over that of all eigenpairs, prior precision 1 / 10 / 100): rank 5
leaves out 0.30 and gives 6.2 / 4.2 / 2.6, rank 10 leaves out 0.05 and gives 2.4 / 1.9 / 1.3, rank 100 leaves out 0.005
and gives 1.2 / 1.1 / 1.0. The trace is that of few large eigenvalues, so that a small share is no proof of a good rank.
"""


def left_out(curvature: Operator, trace: float | None) -> float | None:
    """The share of a curvature's trace that its reduction does not carry.

    Args:
        curvature: The reduction. All but a plain low rank leave nothing out: their diagonal is the exact one, or
            (Kronecker factors alone) stands for all of it.
        trace: Of the whole curvature, where it is known.
    """
    if not isinstance(curvature, LowRank):
        return 0.0
    if trace is None:
        return None
    return min(1.0, max(0.0, 1.0 - float(curvature.s.sum()) / trace)) if trace > 0 else 0.0


def carried(curvature: Operator, trace: float | None) -> dict[str, float | None]:
    """The share of the trace that each part of a reduction carries."""
    if isinstance(curvature, BlockLowRank):
        total = float(curvature.trace())
        low = float((jnp.square(curvature.U).sum(0) * curvature.s).sum()) / total if total > 0 else 0.0
        return {"low rank": low, "blocks": 1.0 - low}
    share = left_out(curvature, trace)
    name = "low rank" if isinstance(curvature, LowRank) else "blocks"
    return {name: None if share is None else 1.0 - share}


def check_reduced(curvature: Operator, trace: float | None, likelihood: Likelihood) -> None:
    """Say that data curve nowhere, so that the posterior would be the prior, or that a reduction leaves out much.

    Raises:
        ValueError: If data curve nowhere by a loss of the user's own.

    Warns:
        UserWarning: If they do not by the network, or of what is left out.
    """
    if float(curvature.trace()) != 0.0:
        return warn_of_left_out(curvature, trace)
    if isinstance(likelihood, Custom):
        raise ValueError(
            "The second derivative of the loss is zero at every sample, as that of an absolute or a pinball loss is: "
            "the curvature would be zero and the posterior the prior. Use a smooth loss, or likelihood='regression'; "
            "curvature='empirical_fisher' takes gradients alone."
        )
    warnings.warn(
        "The curvature of the data is zero: no covered parameter reaches the outputs, every target is ignored, or the "
        "network is as sure as its numbers can say. The posterior is the prior.",
        stacklevel=4,
    )
    return None


def warn_of_left_out(curvature: Operator, trace: float | None) -> None:
    """Say that a plain low rank leaves out much, and what would not.

    Warns:
        UserWarning: Naming the rank and the share.
    """
    share = left_out(curvature, trace)
    if share is None or share <= MUCH or not isinstance(curvature, LowRank):
        return
    warnings.warn(
        f"Rank {curvature.rank} leaves out {share:.0%} of the curvature's trace: predictive variances are too wide. "
        "Use a larger rank, or hessian_structure='kron_lowrank', which keeps the diagonal of what is left out.",
        stacklevel=4,
    )
