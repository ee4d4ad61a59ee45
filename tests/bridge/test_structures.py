"""Which structure a call asks for, and what goes with it."""

import jax
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bridge import Laplace
from tests.bridge import dense

pytestmark = pytest.mark.in_turns


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).eval()


def fitted(**options):
    torch.manual_seed(1)
    data = TensorDataset(torch.randn(24, 4), torch.arange(24) % 3)
    return Laplace(network(), progress=False, **options).fit(DataLoader(data, batch_size=8))


def test_a_method_of_finding_a_low_rank_asks_for_one():
    assert Laplace(network()).options.structure == "kron_lowrank"
    assert Laplace(network(), method="lanczos").options.structure == "lowrank"
    assert Laplace(network(), hessian_structure="kron_lowrank", method="nystrom").options.method == "nystrom"


def test_a_method_that_the_structure_would_not_look_at_is_refused():
    with pytest.raises(ValueError, match="method='lanczos' does not go with hessian_structure='kron'"):
        Laplace(network(), hessian_structure="kron", method="lanczos")


def test_a_rank_beside_blocks_shrinks_and_says_so():
    la = fitted(rank=10_000)
    assert f"rank {la.order.size} (all there are)" in la.plan.reason


@pytest.mark.parametrize("structure", ["kron", "ekfac", "kron_lowrank"])
def test_kronecker_structures_take_a_prior_per_tensor_and_none_per_parameter(structure):
    la = fitted(hessian_structure=structure, rank=5)
    la.prior_precision = [1.0, 2.0, 3.0, 4.0]
    la.prior_precision = torch.repeat_interleave(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor(la.order.sizes))
    assert la.prior_precision.tolist() == [1.0, 2.0, 3.0, 4.0]
    with pytest.raises(ValueError, match="one per parameter tensor"):
        la.prior_precision = torch.arange(1.0, la.order.size + 1)
    with pytest.raises(ValueError, match="one per parameter tensor"):
        Laplace(network(), hessian_structure=structure, prior_precision=torch.arange(1.0, la.order.size + 1))


@pytest.mark.parametrize("structure", ["kron", "kron_lowrank"])
def test_a_folded_normalisation_keeps_its_convolution_a_kronecker_product(structure):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)).eval()
    model[1].running_var.uniform_(0.5, 2)
    data = TensorDataset(torch.randn(12, 1, 6, 6), torch.arange(12) % 3)
    la = Laplace(model, progress=False, hessian_structure=structure, rank=5).fit(DataLoader(data, batch_size=4))
    assert "2 Kronecker blocks" in la.plan.reason


class Recurrent(nn.Module):
    """The last step's state of a recurrent layer, and a head."""

    def __init__(self, kind, **options):
        super().__init__()
        torch.manual_seed(0)
        self.layer = kind(3, 5, batch_first=True, **options)
        self.head = nn.Linear(10 if options.get("bidirectional") else 5, 3)

    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1])


@pytest.mark.parametrize(
    ("kind", "options", "blocks"),
    [
        (nn.LSTM, {"num_layers": 2, "bidirectional": True}, 9),
        (nn.GRU, {}, 3),
        (nn.RNN, {"nonlinearity": "relu", "bias": False}, 3),
    ],
)
def test_recurrent_matrices_have_kronecker_blocks_of_which_the_diagonal_is_exact(kind, options, blocks):
    model = Recurrent(kind, **options).double().eval()
    x, y = torch.randn(12, 6, 3, generator=torch.Generator().manual_seed(1)).double(), torch.arange(12) % 3
    la = dense.fit(model, x, y, structure="ekfac")
    assert la.plan.reason.startswith(f"{blocks} Kronecker blocks")
    exact = dense.ggn(model, x, lambda z, i: nn.functional.cross_entropy(z, y[i : i + 1], reduction="sum"))
    with jax.enable_x64(True):
        assert dense.trace_of(la) == pytest.approx(float(torch.as_tensor(exact).trace()), rel=1e-8)


class Aside(nn.Module):
    """A network beside weights that reach no output."""

    def __init__(self):
        super().__init__()
        self.frozen, self.unused = network().requires_grad_(False), nn.Linear(2, 2)

    def forward(self, x):
        return self.frozen(x)


class Constant(nn.Module):
    """Logits that no input changes."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.5, 0.0, -1.0]))

    def forward(self, x):
        return self.logits.expand(x.shape[0], 3)


STRUCTURES = ("full", "diag", "lowrank", "kron", "ekfac", "kron_lowrank")


@pytest.mark.parametrize("structure", STRUCTURES)
def test_where_data_say_nothing_the_posterior_is_the_prior_with_a_warning(structure):
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    la = Laplace(Aside(), hessian_structure=structure, progress=False, prior_precision=4.0)
    with pytest.warns(UserWarning, match="curvature of the data is zero"):
        la.fit([(x, y)])
    torch.testing.assert_close(la.posterior_variance, torch.full((6,), 0.25))
    assert la.predictive_distribution(x)[1].abs().max() == 0
    assert la.predictive_samples(x, n_samples=3).shape == (3, 6, 3)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_model_that_no_input_changes_has_the_curvature_of_its_counts(structure):
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    model = Constant()
    la = Laplace(model, hessian_structure=structure, progress=False).fit([(x, y)])
    p = model.logits.detach().softmax(0)
    wanted = 6 * (torch.diag(p) - torch.outer(p, p))
    wanted = wanted.diag().diag() if structure == "diag" else wanted
    torch.testing.assert_close(la.predictive_distribution(x)[1][0], torch.linalg.inv(wanted + torch.eye(3)))


class Mixed(nn.Module):
    """Weights whose outputs lie between its inputs, as splines of a Kolmogorov-Arnold network and heads have them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.splines = nn.Parameter(torch.randn(4, 3, 2))
        self.heads = nn.Parameter(torch.randn(2, 3, 2) / 2)

    def forward(self, x):
        bent = torch.stack([x, x.sin()], -1)
        hidden = torch.einsum("bik,iok->bo", bent, self.splines)
        return torch.einsum("bd,hde->bhe", hidden.tanh(), self.heads).flatten(1)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_weights_with_outputs_between_inputs_have_the_trace_of_their_curvature(structure):
    x, y = torch.randn(12, 4, generator=torch.Generator().manual_seed(2)), torch.arange(12) % 4
    la, exact = (Laplace(Mixed(), hessian_structure=s, progress=False).fit([(x, y)]) for s in (structure, "full"))
    got = la.H if structure == "diag" else la.H.diag() if structure == "full" else la.H.diagonal()
    torch.testing.assert_close(got.sum(), exact.H.trace(), rtol=1e-3 if "lowrank" in structure else 1e-4, atol=0.0)
