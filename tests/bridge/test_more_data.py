"""``fit(override=False)``: a posterior that has seen two sets, one after the other."""

import pytest
import torch
from torch import nn

from bridge import Laplace
from tests.bridge.dense import silent
from tests.bridge.small import STRUCTURES, SUBSETS, data, fitted, loader, make, matrix, network

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.in_turns]
FIRST, SECOND = slice(0, 16), slice(16, 30)  # whole batches, as one loader has them
EXACT = [(s, sub, "classification") for s in ("full", "diag", "lowrank") for sub in SUBSETS]
EXACT += [(s, "all", "regression") for s in ("full", "diag", "lowrank")]


def in_two(*what, likelihood="classification", **options):
    la = make(*what, likelihood=likelihood, **options).fit(loader(likelihood, FIRST))
    return la.fit(loader(likelihood, SECOND), override=False)


@pytest.mark.parametrize(("structure", "subset", "likelihood"), EXACT, ids=str)
def test_two_fits_are_one_on_both_sets(structure, subset, likelihood):
    two, one = in_two(structure, subset, likelihood=likelihood), fitted(structure, subset, likelihood)
    torch.testing.assert_close(matrix(two.posterior_precision), matrix(one.posterior_precision), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(two.log_marginal_likelihood(), one.log_marginal_likelihood(), rtol=1e-6, atol=1e-8)
    x = data()[0][:5]
    torch.testing.assert_close(two(x), one(x), rtol=1e-6, atol=1e-8)
    assert (two.n_data, two.fitted.num_samples) == (30, 30)


@pytest.mark.parametrize("structure", STRUCTURES[3:])
def test_two_fits_in_kronecker_coordinates_are_nearly_one(structure):
    two, one = in_two(structure), fitted(structure)
    a, b = matrix(two.posterior_precision), matrix(one.posterior_precision)
    assert (a - b).norm() < 0.05 * b.norm()
    torch.testing.assert_close(a.trace(), b.trace(), rtol=0.02, atol=0)
    torch.testing.assert_close(two.log_likelihood, one.log_likelihood)
    x = data()[0]
    deviations = [la.predictive_distribution(x)[1].diagonal(dim1=1, dim2=2) for la in (two, one)]
    assert ((deviations[0] / deviations[1]).log().abs().median()).exp() < 1.1


def test_a_rank_that_does_not_suffice_says_what_it_leaves_out():
    la = silent(lambda: in_two("lowrank", rank=6))
    whole = fitted("full").fitted.curvature.trace()
    share = 1 - float(la.fitted.curvature.trace()) / float(whole)
    assert la.fitted.left_out == pytest.approx(share, rel=1e-6) and share > 0


def test_totals_that_the_sets_stand_for_add_up():
    la = make("diag").fit(loader(part=FIRST), num_total_samples=160)
    la.fit(loader(part=SECOND), override=False, num_total_samples=28)
    assert (la.n_data, la.fitted.num_samples) == (188, 30)


def test_a_kept_posterior_takes_more_data():
    la = make("full")
    la.load_state_dict(make("full").fit(loader(part=FIRST)).state_dict())
    la.fit(loader(part=SECOND), override=False)
    torch.testing.assert_close(la.posterior_precision, fitted("full").posterior_precision)


def test_hyperparameters_and_the_first_fit_stay_and_override_forgets_them_not():
    la = make("diag").fit(loader(part=FIRST))
    la.prior_precision = 7.0
    first = la.fitted
    la.fit(loader(part=SECOND), override=False)
    assert float(la.prior_precision) == 7.0 and first.num_samples == 16
    la.fit(loader(part=SECOND))
    assert la.n_data == 14


def test_without_an_earlier_fit_it_is_the_first():
    torch.testing.assert_close(
        make("diag").fit(loader(), override=False).posterior_precision, fitted("diag").posterior_precision
    )


def test_at_weights_trained_on_since_old_curvature_adds_to_the_new():
    model = network()
    la = Laplace(model, hessian_structure="diag", progress=False).fit(loader(part=FIRST))
    old = la.posterior_precision
    with torch.no_grad():
        model[2].bias.add_(1)
    new = Laplace(model, hessian_structure="diag", progress=False).fit(loader(part=SECOND))
    la.fit(loader(part=SECOND), override=False)
    torch.testing.assert_close(la.posterior_precision, old + new.posterior_precision - 1)  # one prior, not two
    torch.testing.assert_close(la.mean, new.mean)


def test_a_fit_that_fails_adds_nothing():
    la = make("diag").fit(loader(part=FIRST))
    before = la.posterior_variance
    with pytest.raises(ValueError, match="empty"):
        la.fit([], override=False)
    assert torch.equal(la.posterior_variance, before) and la.n_data == 16
    assert isinstance(la, nn.Module)
