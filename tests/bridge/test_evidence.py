"""The evidence's gradient by torch, against differences of its values."""

import pytest
import torch

from tests.bridge.small import STRUCTURES, fitted, own

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.in_turns]
PRIORS = {"scalar": (), "one of one": (1,), "per tensor": (4,), "per weight": (43,)}
PER_TENSOR = [(s, p) for s in STRUCTURES for p in PRIORS if p != "per weight" or s in ("full", "diag", "lowrank")]


def prior(shape):
    return torch.linspace(0.5, 4.0, max(1, *shape, 1)).double().reshape(shape) if shape else torch.tensor(1.3).double()


def differences(function, value, step=1e-5):
    """Central ones, entry by entry."""
    flat, found = value.detach().flatten(), []
    for i in range(len(flat)):
        moved = [flat.clone(), flat.clone()]
        moved[0][i] += step
        moved[1][i] -= step
        high, low = (function(v.reshape(value.shape)) for v in moved)
        found.append((high - low) / (2 * step))
    return torch.stack(found).reshape(value.shape)


@pytest.mark.parametrize(("structure", "kind"), PER_TENSOR)
def test_slope_along_the_prior_is_the_difference_quotient(structure, kind):
    la = own(fitted(structure))
    la.prior_mean = 0.3
    value = prior(PRIORS[kind]).requires_grad_()
    (slope,) = torch.autograd.grad(la.log_marginal_likelihood(value), value)
    torch.testing.assert_close(slope, differences(la.log_marginal_likelihood, value), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_slope_along_the_noise_is_the_difference_quotient(structure, temperature):
    la = own(fitted(structure, likelihood="regression"))
    la.temperature = temperature
    noise = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    value = la.log_marginal_likelihood(3.0, noise)
    (slope,) = torch.autograd.grad(value, noise)
    torch.testing.assert_close(
        slope, differences(lambda s: la.log_marginal_likelihood(3.0, s), noise), rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(value.detach(), la.log_marginal_likelihood(3.0, 0.6))


def test_both_slopes_come_from_one_graph_and_scale_with_what_follows():
    la = own(fitted(likelihood="regression"))
    both = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (2.0, 0.6)]
    once = torch.autograd.grad(la.log_marginal_likelihood(*both), both)
    tripled = torch.autograd.grad(-3 * la.log_marginal_likelihood(*both), both)
    torch.testing.assert_close([-3 * s for s in once], list(tripled))


def test_a_loop_of_torchs_optimiser_climbs():
    la = own(fitted(likelihood="regression"))
    logs = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimiser, values = torch.optim.Adam([logs], lr=0.1), []
    for _ in range(20):
        optimiser.zero_grad()
        loss = -la.log_marginal_likelihood(logs[0].exp(), logs[1].exp())
        loss.backward()
        optimiser.step()
        values.append(float(loss.detach()))
    assert values[-1] < values[0] and la.is_fitted


def test_a_whole_number_beside_a_tensor_that_moves_does_not_round_the_evidence():
    la = own(fitted(likelihood="regression"))
    noise = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    found = la.log_marginal_likelihood(torch.tensor(3), noise)
    torch.testing.assert_close(found.detach(), la.log_marginal_likelihood(3.0, 0.6))
    assert found.requires_grad


def test_without_a_gradient_wanted_there_is_no_graph():
    la, value = own(fitted()), torch.tensor(2.0, requires_grad=True)
    with torch.no_grad():
        assert not la.log_marginal_likelihood(value).requires_grad
    assert not la.log_marginal_likelihood(value.detach()).requires_grad


def test_a_prior_per_weight_beside_kronecker_blocks_has_a_slope_per_tensor_spread_over_it():
    la = own(fitted("kron"))
    value = torch.full((43,), 1.3, dtype=torch.float64, requires_grad=True)
    each = torch.full((4,), 1.3, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(la.log_marginal_likelihood(value), value)
    (wanted,) = torch.autograd.grad(la.log_marginal_likelihood(each), each)
    torch.testing.assert_close(torch.stack([part.sum() for part in slope.split(list(la.order.sizes))]), wanted)


def test_a_second_derivative_is_refused_where_torch_would_leave_it_out():
    value = torch.tensor(2.0, requires_grad=True)
    (slope,) = torch.autograd.grad(own(fitted()).log_marginal_likelihood(value), value, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives alone"):
        torch.autograd.grad(slope + value**2, value)
