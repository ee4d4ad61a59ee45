"""The posterior pushed through the network."""

from jax_core.predictive.linearized import GaussianOutputs, joint_predictive, linearized_predictive
from jax_core.predictive.links import (
    MonteCarlo,
    laplace_bridge,
    laplace_bridge_normalized,
    link_by_name,
    mean_field_1,
    mean_field_2,
    probit,
)
from jax_core.predictive.marginal import marginal_predictive
from jax_core.predictive.sampled import moments, sampled_predictive

__all__ = [
    "GaussianOutputs",
    "MonteCarlo",
    "joint_predictive",
    "laplace_bridge",
    "laplace_bridge_normalized",
    "linearized_predictive",
    "link_by_name",
    "marginal_predictive",
    "mean_field_1",
    "mean_field_2",
    "moments",
    "probit",
    "sampled_predictive",
]
