"""Choosing the prior: by the evidence, by a grid on held-out data, by gradients."""

from jax_core.tuning.evidence import evidence_loss, evidence_on_grid, maximize_evidence, spectrum
from jax_core.tuning.held_out import Objective, Score, held_out_losses, objective_by_name, predictions_on_grid
from jax_core.tuning.search import gradient_descent, grid_search, log_grid
from jax_core.tuning.tuned import Report, Tuned

__all__ = [
    "Objective",
    "Report",
    "Score",
    "Tuned",
    "evidence_loss",
    "evidence_on_grid",
    "gradient_descent",
    "grid_search",
    "held_out_losses",
    "log_grid",
    "maximize_evidence",
    "objective_by_name",
    "predictions_on_grid",
    "spectrum",
]
