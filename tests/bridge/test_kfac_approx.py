"""Kronecker factors of shared weights, expanded and reduced, against curvlinops'."""

import functools

import pytest
import torch
from curvlinops import EKFACLinearOperator, FisherType, KFACLinearOperator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bridge
from bridge import Laplace
from bridge.peer_options import kfac_approx_of
from tests.bridge.dense import jacobian

pytestmark = pytest.mark.in_turns

PEERS = {"kron": KFACLinearOperator, "ekfac": EKFACLinearOperator}


class Mean(nn.Module):
    """Over positions."""

    def forward(self, x):
        return x.mean(1)


class Attention(nn.Module):
    """One head, whose keys are bent: a softmax of scores does not feel what is added to all keys, so that the sum of
    their output gradients, a factor of "reduce", would be rounding alone."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(4, 4) for _ in range(3))
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        mixed = nn.functional.scaled_dot_product_attention(self.query(x), torch.tanh(self.key(x)), self.value(x))
        return self.out(torch.tanh(mixed)).mean(1)


MODELS = {
    "sequences": (lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3), Mean()), (5, 4)),
    "images": (
        lambda: (
            nn.Sequential(nn.Conv2d(1, 2, 3, 2), nn.Tanh(), nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Flatten())
            + nn.Sequential(nn.Linear(12, 3))
        ),
        (1, 7, 7),
    ),
    "attention": (Attention, (5, 4)),
}


@functools.cache
def given(name):
    make, shape = MODELS[name]
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    x = torch.randn(14, *shape, generator=generator, dtype=torch.float64)
    return make().double(), x, torch.randint(3, (14,), generator=generator)


@functools.cache
def fitted(name, structure, kfac_approx=None):
    model, x, y = given(name)
    how = {"hessian_structure": structure, "kfac_approx": kfac_approx, "prior_precision": 2.0, "progress": False}
    return Laplace(model, **how).fit(DataLoader(TensorDataset(x, y), batch_size=5))


@pytest.mark.parametrize("kfac_approx", ["expand", "reduce"])
@pytest.mark.parametrize("structure", PEERS)
@pytest.mark.parametrize("name", MODELS)
def test_covariances_are_those_of_curvlinops(name, structure, kfac_approx):
    model, x, y = given(name)
    params = list(model.parameters())
    how = {"fisher_type": FisherType.TYPE2, "kfac_approx": kfac_approx, "check_deterministic": False}
    peer = PEERS[structure](model, nn.CrossEntropyLoss(reduction="sum"), params, [(x, y)], **how)
    unit = torch.eye(sum(p.numel() for p in params), dtype=x.dtype)
    precision = peer @ unit + 2.0 * unit
    rows = torch.stack([jacobian(model, x[i : i + 1]) for i in range(3)])
    expected = rows @ torch.linalg.inv(precision) @ rows.mT
    found = fitted(name, structure, kfac_approx).predictive_distribution(x[:3])[1]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_the_approximations_differ_and_to_expand_is_the_default():
    x = given("images")[1]
    expanded, reduced = (
        fitted("images", "kron", how).predictive_distribution(x[:2])[1] for how in ("expand", "reduce")
    )
    assert (expanded - reduced).abs().max() > 1e-3
    torch.testing.assert_close(fitted("images", "kron").predictive_distribution(x[:2])[1], expanded)


def test_beside_a_low_rank_of_all_there_is_no_approximation_shows():
    x = given("sequences")[1]
    found = [fitted("sequences", "kron_lowrank", how).predictive_distribution(x[:2])[1] for how in ("expand", "reduce")]
    torch.testing.assert_close(*found)


def test_it_is_kept_and_shown(tmp_path):
    la, x = fitted("images", "ekfac", "reduce"), given("images")[1]
    assert "kfac_approx='reduce'" in la.plan.reason and "kfac_approx=reduce" in repr(la)
    bridge.save(la, tmp_path / "la.safetensors")
    how = {"hessian_structure": "ekfac", "progress": False}
    again = bridge.load(tmp_path / "la.safetensors", Laplace(given("images")[0], kfac_approx="reduce", **how))
    torch.testing.assert_close(again(x), la(x))
    with pytest.raises(ValueError, match="kfac_approx='reduce', this Laplace has 'expand'"):
        bridge.load(tmp_path / "la.safetensors", Laplace(given("images")[0], **how))
    with pytest.raises(ValueError, match="kfac_approx="):
        Laplace(given("images")[0], **how).load_state_dict(la.state_dict())


@pytest.mark.usefixtures("unchecked_annotations")
def test_it_is_refused_where_it_means_nothing():
    for structure in ("full", "lowrank", "diag"):
        with pytest.raises(ValueError, match=f"kfac_approx='reduce' does not go with hessian_structure='{structure}'"):
            Laplace(nn.Linear(2, 2), hessian_structure=structure, kfac_approx="reduce")
    with pytest.raises(ValueError, match=r"kfac_approx='shrink'\. Choose one of 'expand', 'reduce'"):
        Laplace(nn.Linear(2, 2), kfac_approx="shrink")


def test_the_option_of_a_backend_is_read():
    assert Laplace(nn.Linear(2, 2), backend_kwargs={"kfac_approx": "reduce"}).options.kfac_approx == "reduce"
    assert kfac_approx_of("reduce", {"kfac_approx": "reduce"}) == "reduce" and kfac_approx_of(None) == "expand"
    with pytest.raises(ValueError, match="Give one of them"):
        kfac_approx_of("expand", {"kfac_approx": "reduce"})
