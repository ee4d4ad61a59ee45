"""Scores of predictions: pure functions of arrays, and their evaluation over a loader."""

from jax_core.evaluation.calibration import (
    BinMetrics,
    adaptive_calibration_error,
    bin_metrics,
    expected_calibration_error,
    maximum_calibration_error,
)
from jax_core.evaluation.classification import accuracy, brier, correctness, nll_categorical
from jax_core.evaluation.regression import chi_squared, crps_gaussian, nll_gaussian, rmse
from jax_core.evaluation.uncertainty import auroc, mutual_information, predictive_entropy

__all__ = [
    "BinMetrics",
    "accuracy",
    "adaptive_calibration_error",
    "auroc",
    "bin_metrics",
    "brier",
    "chi_squared",
    "correctness",
    "crps_gaussian",
    "expected_calibration_error",
    "maximum_calibration_error",
    "mutual_information",
    "nll_categorical",
    "nll_gaussian",
    "predictive_entropy",
    "rmse",
]
