"""A saved posterior, loaded around the same model, predicts as the fitted one."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bridge
from bridge import Laplace


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def loader():
    generator = torch.Generator().manual_seed(1)
    return DataLoader(TensorDataset(torch.randn(20, 4, generator=generator), torch.arange(20) % 3), batch_size=10)


def laplace(module, **options):
    return Laplace(module, progress=False, **({"rank": 5} | options))


@pytest.mark.parametrize("prior", [3.0, [1.0, 2.0, 3.0, 4.0]], ids=["scalar", "per layer"])
@pytest.mark.parametrize("structure", ["lowrank", "full", "diag"])
def test_loaded_posterior_is_the_saved_one(tmp_path, structure, prior):
    module, options = model(), {"hessian_structure": structure, "prior_precision": prior}
    fitted = laplace(module, **options).fit(loader(), num_total_samples=100)
    bridge.save(fitted, tmp_path / "la.safetensors")
    loaded = bridge.load(tmp_path / "la.safetensors", laplace(module, hessian_structure=structure))
    x = torch.randn(6, 4)
    torch.testing.assert_close(loaded(x), fitted(x))
    torch.testing.assert_close(loaded.log_marginal_likelihood(), fitted.log_marginal_likelihood())
    assert loaded.plan == fitted.plan and loaded.fitted.num_total_samples == 100
    assert loaded.fitted.trace == fitted.fitted.trace and loaded.fitted.left_out == fitted.fitted.left_out
    with pytest.raises(ValueError, match=r"read from a file.*val_loader="):
        loaded.optimize_prior_precision()
    loaded.optimize_prior_precision("marglik")
    assert [path.name for path in tmp_path.iterdir()] == ["la.safetensors"]


def test_models_with_keyword_inputs_are_saved_too(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model()

        def forward(self, a, b):
            return self.inner(a + b)

    module, x = Two(), torch.randn(6, 4)
    batches = [({"a": x, "b": 2 * x}, torch.arange(6) % 3)]
    fitted = laplace(module).fit(batches)
    bridge.save(fitted, tmp_path / "la.safetensors")
    loaded = bridge.load(tmp_path / "la.safetensors", laplace(module))
    torch.testing.assert_close(loaded({"a": x, "b": x}), fitted({"a": x, "b": x}))


def test_what_does_not_belong_together_is_refused_and_changes_nothing(tmp_path):
    path = tmp_path / "la.safetensors"
    with pytest.raises(RuntimeError, match="fit"):
        bridge.save(laplace(model()), path)
    bridge.save(laplace(model()).fit(loader()), path)
    other = laplace(model(1))
    with pytest.raises(ValueError, match="other weights"):
        bridge.load(path, other)
    with pytest.raises(RuntimeError, match="no posterior"):
        other(torch.randn(2, 4))
    with pytest.raises(ValueError, match="hessian_structure='kron_lowrank'"):
        bridge.load(path, laplace(model(), hessian_structure="diag"))
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="no safetensors file"):
        bridge.load(path, laplace(model()))
