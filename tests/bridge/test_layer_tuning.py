"""A precision for each layer from held-out data: never worse there than one for all, and the figures hold for la(x)."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.bridge.dense import fit
from tests.bridge.test_joint_tuning import GRID, HELD, TRAIN, loss, targets, trained

pytestmark = pytest.mark.in_turns


def silent_pairs(kind):
    x, y = targets(HELD, kind)
    return [(x[:120], y[:120]), (x[120:], y[120:])]


def tune(la, kind, **how):
    return la.optimize_prior_precision(val_loader=silent_pairs(kind), grid=GRID, **how)


@pytest.mark.parametrize("structure", ["kron", "kron_lowrank", "diag", "lowrank", "full"])
@pytest.mark.parametrize("kind", ["classification", "multilabel"])
def test_held_out_loss_is_no_worse_than_with_one_precision_and_that_of_predictions(kind, structure):
    la = fit(trained(kind), *targets(TRAIN, kind), kind, hessian_structure=structure)
    one = tune(la, kind)
    tuned = tune(la, kind, prior_structure="layerwise")
    assert tuned.loss < one.loss and np.shape(tuned.prior_precision) == (4,)
    x, y = targets(HELD, kind)
    np.testing.assert_allclose(loss(la(x), y), tuned.loss, rtol=2e-3)
    np.testing.assert_allclose(la.prior_precision, tuned.prior_precision, rtol=1e-6)
    assert la.logit_temperature == tuned.logit_temperature and "each layer" in str(la.report())


def test_noise_is_tuned_beside():
    la = fit(trained("regression"), *targets(TRAIN, "regression"), "regression", hessian_structure="kron")
    one = tune(la, "regression")
    tuned = tune(la, "regression", prior_structure="layerwise")
    assert tuned.loss < one.loss and la.sigma_noise == tuned.sigma_noise
    x, y = targets(HELD, "regression")
    mean, variance = la(x, diagonal_output=True)
    found = F.gaussian_nll_loss(mean, y, variance + la.sigma_noise**2, full=True)
    np.testing.assert_allclose(float(found), tuned.loss, rtol=2e-3)


def test_precisions_come_in_the_order_of_parameters():
    """Of a network whose second matrix alone moves its outputs."""
    model = trained()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.zero_()
        model[2].weight.zero_()
    la = fit(model, *targets(TRAIN, "classification"), "classification", hessian_structure="diag")
    tuned = tune(la, "classification", prior_structure="layerwise")
    if np.ndim(tuned.prior_precision):  # only the last bias has a gradient: the others stay where they began
        moved = np.asarray(tuned.prior_precision)
        np.testing.assert_allclose(moved[:3], moved[0])


def test_noise_per_output_is_refused_with_the_remedy():
    la = fit(trained("regression"), *targets(TRAIN, "regression"), "regression", sigma_noise=[1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="one noise"):
        tune(la, "regression", prior_structure="layerwise")
