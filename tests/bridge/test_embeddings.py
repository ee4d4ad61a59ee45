"""Embeddings have the posterior of the same network with the table as a dense layer, in torch's own words."""

import functools

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bridge
from bridge import Laplace

pytestmark = pytest.mark.in_turns

WORDS, LENGTH, WIDTH = 7, 5, 4


class Network(nn.Module):
    """Words and positions; words as numbers, or as vectors of zeros and a one."""

    def __init__(self, words, positions):
        super().__init__()
        self.words, self.positions = words, positions
        self.hidden, self.out = nn.Linear(WIDTH, 5), nn.Linear(5, 3)

    def forward(self, x):
        if isinstance(self.positions, nn.Embedding):
            places = self.positions(torch.arange(x.shape[1]))
        else:
            places = self.positions(torch.eye(LENGTH, dtype=x.dtype))
        return self.out(torch.tanh(self.hidden(torch.tanh(self.words(x) + places))).mean(1))


@functools.cache
def networks(padding_idx):
    torch.manual_seed(0)
    tables = nn.Embedding(WORDS, WIDTH, padding_idx=padding_idx), nn.Embedding(LENGTH, WIDTH)
    looked_up = Network(*tables).double()
    multiplied = Network(*(nn.Linear(len(t.weight), WIDTH, bias=False) for t in tables)).double()
    state = looked_up.state_dict()
    state |= {name: state[name].T.contiguous() for name in ("words.weight", "positions.weight")}
    multiplied.load_state_dict(state)
    return looked_up, multiplied


@functools.cache
def data(padding_idx):
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(WORDS - 1, (20, LENGTH), generator=generator)  # one word is never seen
    vectors = nn.functional.one_hot(x, WORDS).double()
    if padding_idx is not None:
        vectors[..., padding_idx] = 0.0  # torch's own row of padding is zero, and stays so
    return x, vectors, torch.randint(3, (20,), generator=generator)


@functools.cache
def fitted(which, structure, padding_idx, **options):
    *inputs, y = data(padding_idx)
    how = {"hessian_structure": structure, "rank": 3, "prior_precision": 2.0, "progress": False}
    la = Laplace(networks(padding_idx)[which], **how, **options)
    return la.fit(DataLoader(TensorDataset(inputs[which], y), batch_size=8))


@pytest.mark.parametrize("padding_idx", [None, 2])
@pytest.mark.parametrize("structure", ["kron", "ekfac", "kron_lowrank"])
def test_predictions_are_those_of_a_dense_layer(structure, padding_idx):
    found, expected = (
        fitted(i, structure, padding_idx).predictive_distribution(data(padding_idx)[i][:4]) for i in (0, 1)
    )
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
    evidences = [float(fitted(i, structure, padding_idx).log_marginal_likelihood()) for i in (0, 1)]
    assert evidences[0] == pytest.approx(evidences[1], rel=1e-10)


def test_both_tables_are_kronecker_blocks_and_the_row_of_padding_has_the_prior_s_variance():
    la = fitted(0, "kron", 2)
    assert "4 Kronecker blocks" in la.plan.reason
    words = la.posterior_variance[: WORDS * WIDTH].reshape(WORDS, WIDTH)
    torch.testing.assert_close(words[2], torch.full((WIDTH,), 0.5, dtype=words.dtype))
    torch.testing.assert_close(words[-1], torch.full((WIDTH,), 0.5, dtype=words.dtype))
    assert words[0].max() < 0.4999


def test_they_are_saved_and_loaded(tmp_path):
    la, x = fitted(0, "kron_lowrank", 2), data(2)[0]
    bridge.save(la, tmp_path / "la.safetensors")
    how = {"hessian_structure": "kron_lowrank", "progress": False}
    torch.testing.assert_close(bridge.load(tmp_path / "la.safetensors", Laplace(networks(2)[0], **how))(x), la(x))
