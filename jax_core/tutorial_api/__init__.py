"""The vocabulary of laplax's tutorial, thin over the core's own functions: whoever follows that page finds each call.

A name that means one of the core's own is that function under its second name.
"""

from jax_core.curvature import reduce_add, reduce_concat
from jax_core.data.trees import flattener as create_pytree_flattener
from jax_core.data.trees import get_size
from jax_core.evaluation import bin_metrics as calculate_bin_metrics
from jax_core.evaluation import correctness
from jax_core.plots import proportion_diagram as create_proportion_diagram
from jax_core.plots import reliability_diagram as create_reliability_diagram
from jax_core.tutorial_api.calibrate import evaluate_for_given_prior_arguments, optimize_prior_prec
from jax_core.tutorial_api.evaluate import (
    apply_fns,
    evaluate_metrics_on_dataset,
    evaluate_metrics_on_generator,
    evaluate_on_dataset,
    transfer_entry,
)
from jax_core.tutorial_api.loader import (
    execute_with_data_loader,
    input_target_split,
    reduce_online_mean,
    reduce_sum,
    wrap_function_with_data_loader,
)
from jax_core.tutorial_api.losses import create_loss_gradient, create_loss_hessian_mv, full_prec_to_scale
from jax_core.tutorial_api.metrics import (
    DEFAULT_CLASSIFICATION_METRICS,
    DEFAULT_REGRESSION_METRICS,
    chi_squared_zero,
)
from jax_core.tutorial_api.posterior import (
    PosteriorFn,
    create_posterior_fn,
)
from jax_core.tutorial_api.products import (
    create_empirical_fisher_mv,
    create_empirical_fisher_mv_without_data,
    create_ggn_mv,
    create_ggn_mv_without_data,
    create_hessian_mv,
    create_hessian_mv_without_data,
    create_mc_fisher_mv,
    create_mc_fisher_mv_without_data,
    wrap_function,
)
from jax_core.tutorial_api.pushforward import (
    DEFAULT_LIN_FINALIZE_FNS,
    DEFAULT_NONLIN_FINALIZE_FNS,
    lin_mc_pred_act,
    lin_pred_cov,
    lin_pred_mean,
    lin_pred_std,
    lin_pred_var,
    lin_samples,
    lin_setup,
    lin_special_pred_act,
    nonlin_mc_pred_act,
    nonlin_pred_cov,
    nonlin_pred_mean,
    nonlin_pred_std,
    nonlin_pred_var,
    nonlin_samples,
    nonlin_setup,
    nonlin_special_pred_act,
    set_lin_pushforward,
    set_nonlin_pushforward,
    set_posterior_gp_kernel,
)

__all__ = [
    "DEFAULT_CLASSIFICATION_METRICS",
    "DEFAULT_LIN_FINALIZE_FNS",
    "DEFAULT_NONLIN_FINALIZE_FNS",
    "DEFAULT_REGRESSION_METRICS",
    "PosteriorFn",
    "apply_fns",
    "calculate_bin_metrics",
    "chi_squared_zero",
    "correctness",
    "create_empirical_fisher_mv",
    "create_empirical_fisher_mv_without_data",
    "create_ggn_mv",
    "create_ggn_mv_without_data",
    "create_hessian_mv",
    "create_hessian_mv_without_data",
    "create_loss_gradient",
    "create_loss_hessian_mv",
    "create_mc_fisher_mv",
    "create_mc_fisher_mv_without_data",
    "create_posterior_fn",
    "create_proportion_diagram",
    "create_pytree_flattener",
    "create_reliability_diagram",
    "evaluate_for_given_prior_arguments",
    "evaluate_metrics_on_dataset",
    "evaluate_metrics_on_generator",
    "evaluate_on_dataset",
    "execute_with_data_loader",
    "full_prec_to_scale",
    "get_size",
    "input_target_split",
    "lin_mc_pred_act",
    "lin_pred_cov",
    "lin_pred_mean",
    "lin_pred_std",
    "lin_pred_var",
    "lin_samples",
    "lin_setup",
    "lin_special_pred_act",
    "nonlin_mc_pred_act",
    "nonlin_pred_cov",
    "nonlin_pred_mean",
    "nonlin_pred_std",
    "nonlin_pred_var",
    "nonlin_samples",
    "nonlin_setup",
    "nonlin_special_pred_act",
    "optimize_prior_prec",
    "reduce_add",
    "reduce_concat",
    "reduce_online_mean",
    "reduce_sum",
    "set_lin_pushforward",
    "set_nonlin_pushforward",
    "set_posterior_gp_kernel",
    "transfer_entry",
    "wrap_function",
    "wrap_function_with_data_loader",
]
