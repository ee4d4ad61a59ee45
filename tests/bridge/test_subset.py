"""Which weights are covered: the last layer is found or refused, and its posterior is that of a frozen model."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bridge import Laplace, load, save
from bridge.last_layer import find_last_layer
from bridge.subset import Subset

pytestmark = pytest.mark.in_turns

torch.manual_seed(0)
X, Y = torch.randn(40, 4), torch.randint(3, (40,))
LOADER = DataLoader(TensorDataset(X, Y), batch_size=16)
STRUCTURES = ("full", "lowrank", "diag")


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 3))


def last_layer(model, structure="full", **options):
    return Laplace(model, "classification", "last_layer", structure, progress=False, **options)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.left, self.right = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(8, 1)

    def forward(self, x):
        hidden = self.trunk(x).tanh()
        return torch.cat([self.left(hidden), self.right(hidden)], 1)


class Loose(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(4, 3), nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.layer(x) * self.scale


class Raw(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 3))

    def forward(self, x):
        return x @ self.weight


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x).tanh())


class UsedEarly(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.last(self.first(x @ self.last.weight).tanh())


class RegisteredFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.trunk = nn.Linear(24, 3), nn.Linear(4, 24)

    def forward(self, x):
        return self.head(self.trunk(x).tanh())


class UnusedLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.head, self.extra = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 5)

    def forward(self, x):
        hidden = self.trunk(x).tanh()
        out = self.head(hidden)
        self.extra(hidden)
        return out


FOUND = {
    "the last of a row": (network, "4"),
    "registered first": (RegisteredFirst, "head"),
    "one that is called last and not used": (UnusedLast, "head"),
    "a module of its own": (lambda: nn.Linear(4, 3), ""),
    "with a weight that is computed": (
        lambda: nn.Sequential(nn.Linear(4, 8), nn.utils.parametrizations.weight_norm(nn.Linear(8, 3))),
        "1",
    ),
    "normalised behind": (lambda: nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)), "1"),
}
REFUSED = {
    "two heads": (TwoHeads, "'left', 'right'"),
    "a parameter of no module": (Loose, "'scale'"),
    "no module with parameters": (Raw, "no last layer to find"),
    "a tied weight": (Tied, "shares a weight"),
    "a weight used early": (UsedEarly, "shares a weight"),
}


@pytest.mark.parametrize("name", FOUND)
def test_last_layer_is_found_on_a_batch(name):
    make, wanted = FOUND[name]
    assert find_last_layer(make(), X[:4]) == wanted


@pytest.mark.parametrize("name", REFUSED)
def test_model_without_a_single_last_layer_is_refused_with_the_remedy(name):
    make, told = REFUSED[name]
    with pytest.raises(ValueError, match=told) as error:
        last_layer(make()).fit(LOADER)
    assert "last_layer_name=" in str(error.value)


def test_looking_for_the_last_layer_changes_no_flag_and_no_mode():
    model = network().train()
    model[0].requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    find_last_layer(model, X[:4])
    assert flags == [p.requires_grad for p in model.parameters()] and all(m.training for m in model.modules())


@pytest.mark.parametrize("structure", STRUCTURES)
def test_posterior_is_that_of_the_model_with_all_else_frozen(structure):
    model = network()
    frozen = copy.deepcopy(model).requires_grad_(False)
    frozen[4].requires_grad_(True)
    options = {"rank": 10, "progress": False, "prior_precision": 0.7}
    got = last_layer(model, structure, rank=10, prior_precision=0.7).fit(LOADER)
    wanted = Laplace(frozen, "classification", hessian_structure=structure, **options).fit(LOADER)
    torch.testing.assert_close(got(X), wanted(X))
    assert got.order == wanted.order and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    "prior",
    [pytest.param(0.7, id="scalar"), pytest.param(torch.tensor([0.5, 3.0]), id="vector", marks=pytest.mark.slow)],
)
def test_full_last_layer_is_the_dense_posterior(prior):
    torch.manual_seed(2)
    # wide enough that the layer stays in factors
    model = nn.Sequential(nn.Linear(4, 1400), nn.Tanh(), nn.Linear(1400, 3)).eval()
    la = last_layer(model, prior_precision=prior).fit(LOADER)
    with torch.no_grad():
        phi = torch.cat([model[:2](X), torch.ones(len(X), 1)], 1).double()
        prob = model(X).softmax(1).double()
    hessian = torch.diag_embed(prob) - prob[:, :, None] * prob[:, None, :]
    ggn = torch.einsum("ncd,ni,nj->cidj", hessian, phi, phi).reshape(3 * 1401, -1)
    each = torch.as_tensor(prior).double().expand(2)
    tau = torch.cat([each[0].expand(1400), each[1:]]).repeat(3)
    sigma = torch.linalg.inv(ggn + torch.diag(tau)).reshape(3, 1401, 3, 1401)
    wanted = torch.einsum("ni,cidj,nj->ncd", phi, sigma, phi)
    _, covariance = la.predictive_distribution(X)
    torch.testing.assert_close(covariance.double(), wanted, rtol=2e-3, atol=2e-4)


def test_fixed_parameter_of_the_last_layer_stays_fixed():
    model = network()
    model[4].bias.requires_grad_(False)
    la = last_layer(model).fit(LOADER)
    assert la.order.names == ("4.weight",) and not model[4].bias.requires_grad


def test_named_module_is_covered():
    la = last_layer(network(), last_layer_name="2").fit(LOADER)
    assert la.order.names == ("2.weight", "2.bias") and la.subset == Subset("last_layer", "2")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"last_layer_name": "fc"}, "'0', '2', '4'"),
        ({"last_layer_name": "44"}, "Did you mean '4'"),
        ({"subset_of_weights": "all", "last_layer_name": "4"}, "last_layer"),
        ({"subset_of_weights": "first_layer"}, "'all', 'last_layer'"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused_when_they_are_given(options, told):
    with pytest.raises(ValueError, match=told):
        Laplace(network(), **{"subset_of_weights": "last_layer", **options})


def test_layer_without_a_trained_parameter_is_refused():
    model = network()
    model[4].requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to be uncertain about"):
        last_layer(model)


def test_numbers_per_parameter_belong_to_the_layer_that_is_found():
    with pytest.raises(ValueError, match="last_layer_name="):
        last_layer(RegisteredFirst(), prior_precision=torch.tensor([1.0, 2.0])).fit(LOADER)
    la = last_layer(RegisteredFirst(), prior_precision=torch.tensor([1.0, 2.0]), last_layer_name="head").fit(LOADER)
    assert la.order.names == ("head.weight", "head.bias")


@pytest.mark.parametrize("structure", STRUCTURES)
def test_saved_posterior_says_what_it_covers(structure, tmp_path):
    model = RegisteredFirst()
    la = last_layer(model, structure, rank=8).fit(LOADER)
    save(la, tmp_path / "la.safetensors")
    again = load(tmp_path / "la.safetensors", last_layer(model, structure, rank=8))
    torch.testing.assert_close(again(X), la(X))
    assert again.subset == la.subset == Subset("last_layer", "head")
    with pytest.raises(ValueError, match="the last layer 'head'"):
        load(tmp_path / "la.safetensors", Laplace(model, "classification", hessian_structure=structure))


def test_copies_and_state_dicts_cover_the_same():
    la = last_layer(network()).fit(LOADER)
    copied, other = copy.deepcopy(la), last_layer(network())
    other.load_state_dict(la.state_dict())
    for again in (copied, other):
        torch.testing.assert_close(again(X), la(X))
        assert again.order == la.order


def test_a_weight_of_the_trunk_that_moves_is_noticed():
    model = network()
    la = last_layer(model).fit(LOADER)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    with pytest.raises(RuntimeError, match=r"0\.weight"):
        la(X)
