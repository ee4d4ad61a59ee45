"""Laplace approximations in pure JAX: curvature products, their reduction, posteriors and predictives.

The core's own names are listed here; those of laplax's tutorial, from :mod:`jax_core.tutorial_api`, stand beside them.
"""

from jax_core import tutorial_api
from jax_core.curvature import DataLoaderMV, empirical_fisher_mv, ggn_mv, hessian_mv, mc_fisher_mv
from jax_core.data.passes import LoaderPasses
from jax_core.evaluation import (
    BinMetrics,
    accuracy,
    adaptive_calibration_error,
    auroc,
    brier,
    chi_squared,
    crps_gaussian,
    expected_calibration_error,
    maximum_calibration_error,
    mutual_information,
    nll_categorical,
    nll_gaussian,
    predictive_entropy,
    rmse,
)
from jax_core.fit import FitOptions, fit_curvature
from jax_core.fitted import Fitted
from jax_core.gradients.jacobian_maps import map_jacobians
from jax_core.gradients.jacobians import jacobian
from jax_core.likelihoods import Bernoulli, Categorical, Custom, Gaussian, Likelihood, as_likelihood
from jax_core.lowrank import block_lanczos, gram, lanczos, lobpcg, nystrom
from jax_core.matrix_free import diagonal, estimate_diagonal, to_dense
from jax_core.operators import (
    BlockDiagonal,
    BlockLowRank,
    Dense,
    Diagonal,
    Kronecker,
    LowRank,
    Operator,
    Spectral,
    Symmetric,
    logdet,
    whiten,
)
from jax_core.posterior import Evidence, Posterior, gaussian_log_likelihood, log_marginal_likelihood, prior_vector
from jax_core.predictive import (
    GaussianOutputs,
    MonteCarlo,
    joint_predictive,
    laplace_bridge,
    laplace_bridge_normalized,
    linearized_predictive,
    link_by_name,
    marginal_predictive,
    mean_field_1,
    mean_field_2,
    moments,
    probit,
    sampled_predictive,
)
from jax_core.tuning import (
    Tuned,
    evidence_loss,
    gradient_descent,
    grid_search,
    held_out_losses,
    maximize_evidence,
    spectrum,
)
from jax_core.tutorial_api import *  # noqa: F403 - its own __all__ is the list

__all__ = [
    "Bernoulli",
    "BinMetrics",
    "BlockDiagonal",
    "BlockLowRank",
    "Categorical",
    "Custom",
    "DataLoaderMV",
    "Dense",
    "Diagonal",
    "Evidence",
    "FitOptions",
    "Fitted",
    "Gaussian",
    "GaussianOutputs",
    "Kronecker",
    "Likelihood",
    "LoaderPasses",
    "LowRank",
    "MonteCarlo",
    "Operator",
    "Posterior",
    "Spectral",
    "Symmetric",
    "Tuned",
    "accuracy",
    "adaptive_calibration_error",
    "as_likelihood",
    "auroc",
    "block_lanczos",
    "brier",
    "chi_squared",
    "crps_gaussian",
    "diagonal",
    "empirical_fisher_mv",
    "estimate_diagonal",
    "evidence_loss",
    "expected_calibration_error",
    "fit_curvature",
    "gaussian_log_likelihood",
    "ggn_mv",
    "gradient_descent",
    "gram",
    "grid_search",
    "held_out_losses",
    "hessian_mv",
    "jacobian",
    "joint_predictive",
    "lanczos",
    "laplace_bridge",
    "laplace_bridge_normalized",
    "linearized_predictive",
    "link_by_name",
    "lobpcg",
    "log_marginal_likelihood",
    "logdet",
    "map_jacobians",
    "marginal_predictive",
    "maximize_evidence",
    "maximum_calibration_error",
    "mc_fisher_mv",
    "mean_field_1",
    "mean_field_2",
    "moments",
    "mutual_information",
    "nll_categorical",
    "nll_gaussian",
    "nystrom",
    "predictive_entropy",
    "prior_vector",
    "probit",
    "rmse",
    "sampled_predictive",
    "spectrum",
    "to_dense",
    "whiten",
]
__all__ += tutorial_api.__all__
