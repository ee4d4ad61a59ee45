"""Likelihoods: the loss per sample and its curvature with respect to the model's output."""

from jax_core.likelihoods.base import Likelihood, Outputs, block_hessians, block_size, dense_hessian, score
from jax_core.likelihoods.families import (
    Bernoulli,
    Categorical,
    Custom,
    Gaussian,
    Poisson,
    Unweighted,
    as_likelihood,
)
from jax_core.likelihoods.heteroscedastic import Heteroscedastic

__all__ = [
    "Bernoulli",
    "Categorical",
    "Custom",
    "Gaussian",
    "Heteroscedastic",
    "Likelihood",
    "Outputs",
    "Poisson",
    "Unweighted",
    "as_likelihood",
    "block_hessians",
    "block_size",
    "dense_hessian",
    "score",
]
