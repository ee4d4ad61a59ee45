"""A prior precision from a grid, and metrics over a data set, with laplax as the judge."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laplax.api import _resolve_metrics
from laplax.curv.cov import create_posterior_fn as laplax_posterior_fn
from laplax.curv.ggn import create_ggn_mv as laplax_ggn_mv
from laplax.eval import calibrate, metrics, pushforward, utils

from jax_core import LowRank, crps_gaussian, lanczos, nll_gaussian, rmse
from jax_core.tutorial_api import (
    DEFAULT_CLASSIFICATION_METRICS,
    DEFAULT_REGRESSION_METRICS,
    chi_squared_zero,
    create_ggn_mv,
    create_posterior_fn,
    evaluate_for_given_prior_arguments,
    evaluate_metrics_on_dataset,
    evaluate_on_dataset,
    lin_mc_pred_act,
    lin_pred_mean,
    lin_pred_std,
    lin_setup,
    optimize_prior_prec,
    set_lin_pushforward,
    set_nonlin_pushforward,
)

PARAMS = {"a": jax.random.normal(jax.random.key(0), (2, 4)), "b": jax.random.normal(jax.random.key(1), (4, 3))}
DATA = {"input": jax.random.normal(jax.random.key(2), (30, 2)), "target": jax.random.normal(jax.random.key(3), (30, 3))}
LABELS = {"input": DATA["input"], "target": jnp.arange(30) % 3}


def model_fn(input, params):
    return jnp.tanh(input @ params["a"]) @ params["b"]


def squared_error(output, target):
    return jnp.sum((output - target) ** 2)  # laplax's "mse"


def predictive(data=DATA, loss=squared_error, **options):
    posterior_fn = create_posterior_fn("full", create_ggn_mv(model_fn, PARAMS, data, loss), layout=PARAMS)
    return partial(set_lin_pushforward, model_fn=model_fn, mean_params=PARAMS, posterior_fn=posterior_fn, **options)


def laplaxs_predictive(data=DATA, loss="mse"):
    posterior_fn = laplax_posterior_fn("full", mv=laplax_ggn_mv(model_fn, PARAMS, data, loss), layout=PARAMS)
    steps = [pushforward.lin_setup, pushforward.lin_pred_mean, pushforward.lin_pred_std]
    return partial(
        pushforward.set_lin_pushforward,
        model_fn=model_fn,
        mean_params=PARAMS,
        posterior_fn=posterior_fn,
        pushforward_fns=steps,
    )


STEPS = (lin_setup, lin_pred_mean, lin_pred_std)


@pytest.mark.parametrize("name", ["chi_squared_zero", "nll_gaussian", "crps_gaussian", "estimate_rmse"])
def test_metric_under_a_prior_is_laplaxs(name):
    ours = {
        "chi_squared_zero": chi_squared_zero,
        "nll_gaussian": nll_gaussian,
        "crps_gaussian": crps_gaussian,
        "estimate_rmse": rmse,
    }
    prior = {"prior_arguments": {"prior_prec": 3.0}, "data": DATA}
    found = evaluate_for_given_prior_arguments(
        set_prob_predictive=predictive(pushforward_fns=STEPS), metric=ours[name], batch_size=8, **prior
    )
    expected = calibrate.evaluate_for_given_prior_arguments(
        set_prob_predictive=laplaxs_predictive(), metric=getattr(metrics, name), **prior
    )
    np.testing.assert_allclose(found, expected, rtol=2e-4)


def test_prior_of_a_grid_is_laplaxs_and_the_objective_is_compiled_once():
    means = jax.vmap(model_fn, (0, None))(DATA["input"], PARAMS)
    data = DATA | {"target": means + 0.1 * DATA["target"]}  # where neither edge of the grid is best
    traces, predictives = [], (predictive(pushforward_fns=STEPS), laplaxs_predictive())

    @jax.jit
    def mine(prior):
        traces.append(prior)
        return evaluate_for_given_prior_arguments(data=data, set_prob_predictive=predictives[0], prior_arguments=prior)

    @jax.jit
    def theirs(prior):
        return calibrate.evaluate_for_given_prior_arguments(
            data=data, set_prob_predictive=predictives[1], prior_arguments=prior, metric=metrics.nll_gaussian
        )

    grid = {"log_prior_prec_min": -2, "log_prior_prec_max": 4, "grid_size": 13}
    found, expected = optimize_prior_prec(mine, **grid), calibrate.optimize_prior_prec(theirs, **grid)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert len(traces) == 1 and isinstance(found, float)


def test_patience_ends_the_search_where_laplaxs_ends():
    values = [5.0, 4.0, 4.5, 4.6, 1.0, 2.0]

    def objective(tried, prior):
        tried.append(float(prior["prior_prec"]))
        return values[len(tried) - 1]

    ours, theirs = [], []
    grid = {"log_prior_prec_min": 0, "log_prior_prec_max": 5, "grid_size": 6, "patience": 2}
    found = optimize_prior_prec(partial(objective, ours), **grid)
    expected = calibrate.optimize_prior_prec(partial(objective, theirs), **grid)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_error_of_an_objective_is_no_bad_score():
    def broken(prior):
        raise ValueError("shapes")

    with pytest.raises(ValueError, match="shapes"):
        optimize_prior_prec(broken)


def test_regression_metrics_over_a_data_set_are_laplaxs():
    predict = predictive(pushforward_fns=STEPS)(prior_arguments={"prior_prec": 3.0})
    theirs = laplaxs_predictive()(prior_arguments={"prior_prec": 3.0})
    found = evaluate_metrics_on_dataset(predict, DATA, metrics=DEFAULT_REGRESSION_METRICS, batch_size=7)
    expected = utils.evaluate_metrics_on_dataset(theirs, DATA, metrics=metrics.DEFAULT_REGRESSION_METRICS)
    assert found.keys() == expected.keys()
    for name in found:
        assert found[name].shape == (30,)
        np.testing.assert_allclose(found[name], expected[name], rtol=2e-3)


@pytest.mark.mixed_dtypes  # laplax's
def test_classification_metrics_over_a_data_set_are_laplaxs():
    steps = (lin_setup, lin_pred_mean, lin_pred_std, lin_mc_pred_act)
    given = {"pushforward_fns": steps, "key": jax.random.key(0), "num_samples": 20}
    predict = predictive(LABELS, "cross_entropy", **given)(prior_arguments={"prior_prec": 3.0})
    found = evaluate_metrics_on_dataset(predict, LABELS, metrics=DEFAULT_CLASSIFICATION_METRICS)

    def laplaxs_entries(x):
        made = predict(x)
        return made | {"pred_act": made["mc_pred_act"]}

    # theirs compares a mean of logits with the target; ours the probabilities
    expected = utils.evaluate_metrics_on_dataset(
        laplaxs_entries, LABELS, metrics=_resolve_metrics("classification")[:1]
    )
    for name in ("confidences_map", "confidences_pred", "correctness_map"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-6)
    np.testing.assert_array_equal(found["nll_map"].shape, (30,))


def test_functions_by_name_get_what_they_name_and_laplaxs_reduction():
    entries = {"metrics_dict": {"width": lambda pred_std: pred_std.mean(), "all": lambda **all_: all_["target"][0]}}
    predict = predictive(pushforward_fns=STEPS)(prior_arguments={"prior_prec": 3.0})
    whole = evaluate_on_dataset(predict, DATA)
    found = evaluate_metrics_on_dataset(predict, DATA, **entries, reduce=jnp.mean)
    np.testing.assert_allclose(found["width"], whole["pred_std"].mean(), rtol=1e-5)
    np.testing.assert_allclose(found["all"], DATA["target"][:, 0].mean(), atol=1e-6)


def test_missing_metrics_and_entries_are_named():
    with pytest.raises(ValueError, match="metrics="):
        evaluate_metrics_on_dataset(lambda x: {}, DATA)
    with pytest.raises(KeyError, match="'pred_std'"):
        evaluate_metrics_on_dataset(lambda x: {"map": x}, DATA, metrics_dict={"width": lambda pred_std: pred_std})
    with pytest.raises(KeyError, match="lin_mc_pred_act"):
        evaluate_metrics_on_dataset(lambda x: {"map": x}, LABELS, metrics=DEFAULT_CLASSIFICATION_METRICS)


def test_samples_come_with_the_default_steps_where_they_are_asked_for():
    drawn = {"key": jax.random.key(0), "num_samples": 5}
    prior = {"prior_arguments": {"prior_prec": 1.0}}
    x = DATA["input"][0]
    assert predictive(**drawn)(**prior)(x)["samples"].shape == (5, 3)
    assert "samples" not in predictive()(**prior)(x)
    posterior_fn = predictive().keywords["posterior_fn"]
    found = set_nonlin_pushforward(model_fn, PARAMS, posterior_fn, {"prior_prec": 1.0}, **drawn)(x)
    assert {"pred_mean", "pred_cov", "pred_var", "pred_std", "samples"} < found.keys()


def test_structure_of_ones_own_goes_by_its_name():
    mv = create_ggn_mv(model_fn, PARAMS, LABELS, "cross_entropy")
    own = {"first_three": lambda mv, layout: lanczos(mv, layout, rank=3, key=jax.random.key(0), mv_jit=True)}
    found = create_posterior_fn("first_three", mv, PARAMS, structures=own)
    assert isinstance(found.curvature, LowRank) and found.curvature.s.shape == (3,)
    with pytest.raises(ValueError, match="'nystrom', 'first_three'"):
        create_posterior_fn("first_four", mv, PARAMS, structures=own)
