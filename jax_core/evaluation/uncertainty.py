"""Scores of the uncertainty itself: how much there is, of which kind, and whether it finds foreign inputs."""

from __future__ import annotations

import jax.numpy as jnp
from jax.scipy.special import entr
from jaxtyping import Array, Float


def predictive_entropy(prob: Float[Array, "*B C"]) -> Float[Array, "*B"]:
    r"""Entropy of each predictive distribution in nats, $-\sum_c p_c \log p_c$, between 0 and $\log C$.

    Args:
        prob: Probabilities, rows summing to 1.

    Returns:
        One entropy a sample.

    Source:
        C. E. Shannon, A mathematical theory of communication, 1948, doi:10.1002/j.1538-7305.1948.tb01338.x.
    """
    return entr(prob).sum(axis=-1)


def mutual_information(prob_samples: Float[Array, "S *B C"]) -> Float[Array, "*B"]:
    r"""What the posterior samples disagree on, in nats: $H[\frac1S \sum_s p_s] - \frac1S \sum_s H[p_s] \ge 0$.

    The total entropy less the part that each sample carries by itself; it is large where the weights, not the data,
    leave the class open.

    Args:
        prob_samples: Probabilities under each posterior sample, samples first.

    Returns:
        One value an input, between 0 and $\log \min(S, C)$.

    Source:
        N. Houlsby, F. Huszar, Z. Ghahramani and M. Lengyel, Bayesian active learning for classification and
        preference learning, 2011, arXiv:1112.5745.
    """
    total = predictive_entropy(prob_samples.mean(axis=0))
    within = predictive_entropy(prob_samples).mean(axis=0)
    return jnp.maximum(total - within, 0)  # round-off may dip below zero where all samples agree


def auroc(scores_in: Float[Array, " N"], scores_out: Float[Array, " M"]) -> Float[Array, ""]:
    r"""Area under the ROC curve of a score that should be high out of distribution.

    It is $P(s_\text{out} > s_\text{in}) + \frac12 P(s_\text{out} = s_\text{in})$: 1 where the score separates the
    two, 0.5 where it is blind.

    Args:
        scores_in: Scores of inputs from the training distribution.
        scores_out: Scores of foreign inputs; high should mean foreign (entropy, variance, minus the confidence).

    Returns:
        The area, a scalar in [0, 1].

    Raises:
        ValueError: If one of the two holds no score.

    Source:
        J. A. Hanley and B. J. McNeil, The meaning and use of the area under a receiver operating characteristic (ROC)
        curve, 1982, doi:10.1148/radiology.143.1.7063747.

    Example:
        >>> float(auroc(jnp.array([0.1, 0.2, 0.6]), jnp.array([0.5, 0.7])))  # five of six pairs
        0.8333333...
    """
    if scores_in.size == 0 or scores_out.size == 0:
        raise ValueError(
            f"The area needs scores of both kinds: got {scores_in.size} inside and {scores_out.size} outside."
        )
    ranked = jnp.sort(scores_in)
    below, not_above = (jnp.searchsorted(ranked, scores_out, side=side) for side in ("left", "right"))
    return ((below + not_above) / (2 * scores_in.size)).mean()
