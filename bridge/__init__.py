"""Post-hoc uncertainty for PyTorch models, computed in JAX: torch in, torch out."""

from bridge.checkpoint import load, save
from bridge.laplace import Laplace
from bridge.losses import to_likelihood
from bridge.marglik_training import marglik_training
from bridge.tensors import to_jax, to_torch
from bridge.tracing import MismatchError, MissingLoweringError, TracedModel, TraceError, explain, lowers, trace

__all__ = [
    "Laplace",
    "MismatchError",
    "MissingLoweringError",
    "TraceError",
    "TracedModel",
    "explain",
    "load",
    "lowers",
    "marglik_training",
    "save",
    "to_jax",
    "to_likelihood",
    "to_torch",
    "trace",
]
