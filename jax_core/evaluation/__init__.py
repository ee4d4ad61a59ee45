"""Scores of predictions: pure functions of arrays, and their evaluation over a loader."""

from jax_core.evaluation.calibration import (
    BinMetrics,
    adaptive_calibration_error,
    calculate_bin_metrics,
    expected_calibration_error,
    maximum_calibration_error,
)
from jax_core.evaluation.classification import accuracy, brier, correctness, nll_categorical
from jax_core.evaluation.evaluate import apply_fns, evaluate_metrics_on_generator, transfer_entry
from jax_core.evaluation.regression import chi_squared, crps_gaussian, nll_gaussian, rmse
from jax_core.evaluation.uncertainty import auroc, mutual_information, predictive_entropy

__all__ = [
    "BinMetrics",
    "accuracy",
    "adaptive_calibration_error",
    "apply_fns",
    "auroc",
    "brier",
    "calculate_bin_metrics",
    "chi_squared",
    "correctness",
    "crps_gaussian",
    "evaluate_metrics_on_generator",
    "expected_calibration_error",
    "maximum_calibration_error",
    "mutual_information",
    "nll_categorical",
    "nll_gaussian",
    "predictive_entropy",
    "rmse",
    "transfer_entry",
]
