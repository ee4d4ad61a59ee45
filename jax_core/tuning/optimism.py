r"""What a predictive will lose on new data, from the data that the network was trained on: Efron's covariance penalty.

Trained on $y$, a predictive with natural parameters $\eta_i$ looks better on it than on new targets of the same
inputs by $\sum_i \operatorname{cov}(\eta_i, y_i)$ (Efron, 2004, doi:10.1198/016214504000000692). In the linearised
posterior the outputs follow the targets by $\partial f_i / \partial y_i = V_i$, their covariance under it, and targets
drawn from the network's own probabilities have covariance $H_i$, the Hessian of the loss, so that the penalty of sample
$i$ is $\operatorname{tr}(\tfrac{\partial \eta_i}{\partial f_i} V_i H_i)$. For the network itself these add up to
$\sum_i \operatorname{tr}(V_i H_i) = \gamma$, the number of effective parameters (MacKay, 1992), and the estimate is
Akaike's criterion. Leave-one-out estimates (arXiv:2310.19273) use the residuals in the place of $H_i$, and see nothing
where a network has fitted every target. What training has not yet followed is taken off $\gamma$ where it is known
(:mod:`jax_core.tuning.followed`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_core.operators import Operator, Symmetric
from jax_core.posterior import Posterior
from jax_core.tuning.families import Family
from jax_core.tuning.marginals import Marginals
from jax_core.xla.precision import full_precision

_EXACT = 16  # outputs of a position up to which a trace is exact
_PROBES = 8  # random signs beyond
_STEP = 0.05  # of log tau


def effective_parameters(curvature: Operator, precision: float) -> float:
    r"""$\gamma = \sum_i \tfrac{s_i}{s_i + \tau}$, the slope of the log-determinant in $\log\tau$."""
    if isinstance(curvature, Symmetric):  # one decomposition, which a search will want too
        curvature = curvature.eigenpairs

    def log_det(shift: float) -> float:
        tau = jnp.asarray(precision * np.exp(shift), jnp.result_type(float))
        return float(_log_det_ratio(curvature, tau))

    return max(0.0, (log_det(-_STEP) - log_det(_STEP)) / (2 * _STEP))


@jax.jit
def _log_det_ratio(curvature: Operator, precision: Array) -> Array:
    return Posterior.create(None, curvature, precision).log_det_ratio()


def responses(
    family: Family, logits: Float[Array, "N K"], covariance: Float[Array, "N K K"], seen: Array, mean_trace: float
) -> Float[Array, "N K K"]:
    r"""$V_i H_i$, scaled so that their traces have the mean they must have, $\gamma / n$.

    A reduced curvature overstates single $V_i$, by orders of magnitude where its spectrum is long, but their sum over
    the training data is known.

    Args:
        family: Of the likelihood.
        logits: The network's outputs.
        covariance: $V_i$ under the prior by which outputs are taken to follow the targets.
        seen: Which positions have a target.
        mean_trace: $\gamma / n$.
    """
    product = _product(family, logits, covariance)
    traces = jnp.where(seen, jnp.trace(product, axis1=-2, axis2=-1), 0.0)
    mean = float(traces.sum()) / max(int(seen.sum()), 1)
    return product * (mean_trace / max(mean, 1e-30))


@jax.jit
@full_precision
def _product(family: Family, logits: Array, covariance: Array) -> Array:
    return covariance @ family.hessian(logits)


@full_precision
def penalty_table(
    family: Family, marginals: Marginals, response: Float[Array, "N K K"], temperatures: Array
) -> Float[Array, "N T L"]:
    r"""$\operatorname{tr}(\tfrac{\partial \eta_i}{\partial f_i} V_i H_i)$ under each precision and temperature.

    Infinite where a probability underflows, whose derivative is lost.
    """
    size = marginals.mean.shape[-1]
    exact = size <= _EXACT
    probes = jnp.eye(size) if exact else jax.random.rademacher(jax.random.key(0), (_PROBES, size), float)
    table = _penalty_table(family, marginals, response, temperatures, probes.astype(marginals.mean.dtype))
    return table if exact else table / _PROBES


@jax.jit
def _penalty_table(family: Family, marginals: Marginals, response: Array, temperatures: Array, probes: Array) -> Array:
    def at(temperature: Array) -> Array:
        def under(covariance: Array) -> Array:
            def natural(logits: Array) -> Array:
                return family.natural(logits / temperature, covariance / temperature**2)

            def along(probe: Array) -> Array:
                return (jax.jvp(natural, (marginals.mean,), (response @ probe,))[1] * probe).sum(-1)

            # a probability that underflows has no derivative left: such a pair is far too sure, not free of penalty
            lost = (natural(marginals.mean) <= jnp.log(jnp.finfo(marginals.mean.dtype).tiny) + 1).any(-1)
            return jnp.where(lost, jnp.inf, jax.vmap(along)(probes).sum(0))

        return jax.vmap(under, 1, 1)(marginals.covariance)

    return jnp.moveaxis(jax.lax.map(at, temperatures), 0, -1)
