"""From a curvature and a prior to a Gaussian over weights and its evidence."""

from jax_core.posterior.evidence import Evidence, gaussian_log_likelihood, log_marginal_likelihood
from jax_core.posterior.posterior import Posterior
from jax_core.posterior.prior import prior_vector

__all__ = [
    "Evidence",
    "Posterior",
    "gaussian_log_likelihood",
    "log_marginal_likelihood",
    "prior_vector",
]
