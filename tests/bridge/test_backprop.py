"""Derivatives of predictions with respect to the input, against differences of predictions."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bridge import Laplace
from bridge.backprop import differentiable
from bridge.predictives import _few_sizes
from jax_core.xla import pullback
from jax_core.xla.pullback import with_pullback
from tests.bridge.small import loader, make

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.in_turns]
CASES = [
    ("classification", "full", "all"),
    ("classification", "kron", "last_layer"),
    ("regression", "full", "all"),
    ("regression", "kron_lowrank", "last_layer"),
    ("regression", "diag", "subnetwork"),
    ("multilabel", "lowrank", "all"),
]


def new(n=2):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def differences(function, x, step=1e-5):
    found = torch.zeros_like(x)
    for place in range(x.numel()):
        moved = [x.clone(), x.clone()]
        moved[0].view(-1)[place] += step
        moved[1].view(-1)[place] -= step
        with torch.no_grad():
            found.view(-1)[place] = (function(moved[0]) - function(moved[1])) / (2 * step)
    return found


@pytest.fixture(scope="module")
def made():
    kept = {}

    def get(likelihood, structure, subset):
        key = likelihood, structure, subset
        if key not in kept:
            kept[key] = make(structure, subset, likelihood, enable_backprop=True).fit(loader(likelihood))
        return kept[key]

    return get


def check(function, x):
    moving = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(function(moving), moving)
    torch.testing.assert_close(slope, differences(function, x), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("likelihood", "structure", "subset"), CASES, ids=str)
def test_slope_of_a_prediction_is_the_difference_quotient(made, likelihood, structure, subset):
    la, weights = made(likelihood, structure, subset), torch.linspace(-1, 2, 3).double()

    def scalar(x):
        found = la(x)
        if likelihood != "regression":
            return (found.log() * weights).sum()
        return (found[0] * weights).sum() + found[1].diagonal(dim1=1, dim2=2).log().sum() + found[1][:, 0, 1].sum()

    check(scalar, new())
    assert torch.equal(scalar(new()), scalar(new().requires_grad_()).detach()) or torch.allclose(
        scalar(new()), scalar(new().requires_grad_()).detach()
    )


ASKED = {
    "joint": lambda la, x: la(x, joint=True)[1].sin().sum(),
    "diagonal_output": lambda la, x: la(x, diagonal_output=True)[1].log().sum(),
    "nn": lambda la, x: la(x, pred_type="nn", n_samples=3)[1].sum(),
    "predictive_distribution": lambda la, x: la.predictive_distribution(x)[1].sin().sum(),
    "uncertainty": lambda la, x: la.uncertainty(x)["epistemic_variance"].sum(),
    "functional_samples": lambda la, x: (
        la.functional_samples(x, n_samples=3, generator=torch.Generator().manual_seed(0)).sin().sum()
    ),
    "samples of the network": lambda la, x: (
        la.functional_samples(x, "nn", n_samples=3, generator=torch.Generator().manual_seed(0)).sin().sum()
    ),
}


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("count", [2, 3])  # a batch of three is filled up
def test_every_kind_of_prediction_has_its_slope(made, asked, count):
    la = made("regression", "full", "all")
    check(lambda x: ASKED[asked](la, x), new(count))
    torch.testing.assert_close(ASKED[asked](la, new(count).requires_grad_()), ASKED[asked](la, new(count)))


@pytest.mark.parametrize("link", ["mc", "probit"])
def test_probabilities_are_the_same_where_they_have_a_slope(made, link):
    la, x = made("classification", "full", "all"), new(5)
    torch.testing.assert_close(la(x.clone().requires_grad_(), link_approx=link).detach(), la(x, link_approx=link))


def test_batches_of_many_sizes_take_few_programs():
    assert {_few_sizes(count) for count in range(1, 129)} == {1, 2, 4, 8, 16, 32, 64, 128}
    assert all(_few_sizes(count) >= count for count in range(1, 300))


def test_samples_have_a_slope_where_outputs_vary_alike(made):
    # of a last layer all outputs of a regression have one variance: eigenvectors of equal eigenvalues have no slope
    la = make("full", "last_layer", "regression", enable_backprop=True).fit(loader("regression"))
    check(lambda x: ASKED["functional_samples"](la, x), new())


def test_entropies_have_a_slope(made):
    la = made("classification", "full", "all")
    check(lambda x: la.uncertainty(x, n_samples=20)["mutual_information"].sum(), new())


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(5, 3), nn.Linear(3, 2)

    def forward(self, values, token):
        return self.out((values + self.embed(token)).tanh())


def test_slopes_of_a_mapping_are_those_of_its_floating_inputs():
    torch.manual_seed(0)
    model, values, token = Named().double(), torch.randn(9, 3).double(), torch.arange(9) % 5
    batches = [{"values": values, "token": token, "labels": torch.randn(9, 2).double()}]
    la = Laplace(model, "regression", hessian_structure="full", enable_backprop=True, progress=False).fit(batches)
    check(lambda v: la({"token": token[:2], "values": v})[1].sum(), values[:2])
    check(lambda v: la(v, token=token[:2])[1].sum(), values[:2])


def test_a_second_derivative_is_refused_where_torch_would_leave_it_out(made):
    la, x = made("regression", "full", "all"), new().requires_grad_()
    (slope,) = torch.autograd.grad(la(x)[0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives alone"):
        (slope.sum() + x.sum()).backward()


def test_there_is_a_graph_only_where_one_is_wanted(made):
    la = made("regression", "full", "all")
    assert not la(new())[0].requires_grad and la(new().requires_grad_())[0].requires_grad
    with torch.no_grad():
        assert not la(new().requires_grad_())[0].requires_grad
    off = make("diag", "all", "regression").fit(loader("regression"))
    with pytest.warns(UserWarning, match="enable_backprop=True"):
        assert not off(new().requires_grad_())[0].requires_grad


def test_a_batch_keeps_its_dtype_and_its_slope():
    torch.manual_seed(0)
    x, y = torch.randn(12, 4), torch.arange(12) % 3
    la = Laplace(nn.Linear(4, 3), hessian_structure="diag", enable_backprop=True, progress=False)
    la.fit(DataLoader(TensorDataset(x, y), batch_size=6))
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        moving = x[:2].to(dtype).requires_grad_()
        found = la(moving)
        found.sum().backward()
        assert found.dtype == moving.grad.dtype == dtype


def test_a_function_of_arrays_is_a_node_of_torchs_graph():
    import jax.numpy as jnp

    x, whole = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([3, 4])
    function = partial(with_pullback, lambda t: {"a": t[0] ** 3 * t[1], "b": t[0].sum()})
    found = differentiable(function, (x, whole), (jnp.array([1.0, 2.0]), jnp.array([3, 4])))
    (found["a"].sum() + 5 * found["b"]).backward()
    torch.testing.assert_close(x.grad, 3 * torch.tensor([1.0, 4.0]) * torch.tensor([3.0, 4.0]) + 5)


def programs():
    return pullback._forward._cache_size(), pullback._pulled._cache_size()


@pytest.mark.parametrize("structure", ["full", "kron_lowrank"])
def test_another_posterior_of_another_network_of_one_architecture_takes_the_same_programs(structure):
    def slope(seed, more):
        la = make(structure, "all", "regression", enable_backprop=True)
        for p in la.model.parameters():
            p.data += seed
        la.fit(loader("regression", slice(20 + more)))
        x = new().requires_grad_()
        mean, covariance = la(x, joint=True)
        variances = la(x, diagonal_output=True)[1]
        (mean.sum() + covariance.sum() + variances.sum()).backward()
        return x.grad

    first, known = slope(0.0, 0), programs()
    assert not torch.allclose(slope(0.1, 1), first)
    assert programs() == known


def test_a_batch_larger_than_a_piece_takes_the_programs_of_one():
    la = make("diag", "all", "regression", enable_backprop=True).fit(loader("regression"))
    x = torch.randn(300, 4, dtype=torch.float64)

    def slope(x):
        moving = x.clone().requires_grad_()
        la(moving, diagonal_output=True)[1].sum().backward()
        return moving.grad

    whole, known = slope(x), programs()
    torch.testing.assert_close(slope(torch.cat([x, x])), whole.repeat(2, 1))
    assert programs() == known
    torch.testing.assert_close(torch.cat([slope(x[:7]), slope(x[7:])]), whole)
