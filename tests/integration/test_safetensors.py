"""Weights and posterior kept as safetensors."""

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bridge import Laplace

X = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(20) % 3


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def test_a_state_dict_in_safetensors_holds_the_posterior(tmp_path):
    la = Laplace(network(0), progress=False).fit([(X, Y)])
    la.optimize_prior_precision()
    save_file(la.state_dict(), tmp_path / "whole.safetensors")
    again = Laplace(network(1), progress=False)
    again.load_state_dict(load_file(tmp_path / "whole.safetensors"))
    torch.testing.assert_close(again(X), la(X))
    assert again.prior_precision == la.prior_precision
