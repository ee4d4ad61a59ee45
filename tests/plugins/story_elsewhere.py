"""What users do with a posterior, with the weights where the data are and elsewhere: the same numbers."""

import copy
import sys
import tempfile
from contextlib import nullcontext

import jax
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from two_devices import weights_elsewhere

import bridge
from bridge import Laplace

DRAW = torch.Generator().manual_seed(0)
X, Y = torch.randn(24, 1, 6, 6, generator=DRAW), torch.arange(24) % 3
LOADER = DataLoader(TensorDataset(X, Y), batch_size=8)


def network() -> nn.Module:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)).eval()


def story(structure: str, subset: str, *, elsewhere: bool) -> dict[str, torch.Tensor]:
    """A fit, each kind of prediction and sample, tuning, keeping, and more data, as tensors by name."""
    model = network()
    other = copy.deepcopy(model)
    found: dict[str, torch.Tensor] = {}
    with weights_elsewhere(model, other) if elsewhere else nullcontext():
        la = Laplace(model, "classification", subset, structure, progress=False, enable_backprop=True).fit(LOADER)
        devices = {d for leaf in jax.tree.leaves(la.posterior) for d in leaf.devices()}
        assert devices == {jax.devices("cpu")[1 if elsewhere else 0]}, devices
        vector = torch.linspace(-1, 1, la.n_params)
        found["linearised"], found["joint"] = la(X[:5]), la.predictive_distribution(X[:5], joint=True)[1]
        found["network"] = la(X[:5], pred_type="nn", n_samples=4, generator=torch.Generator().manual_seed(1))
        found["monte carlo"] = la(X[:5], link_approx="mc", generator=torch.Generator().manual_seed(1))
        found["sample"] = la.sample(3, generator=torch.Generator().manual_seed(2))
        found["functional"] = la.functional_samples(X[:5], n_samples=3, generator=torch.Generator().manual_seed(2))
        found["density"], found["evidence"] = la.log_prob(vector), la.log_marginal_likelihood()
        found["product"] = la.posterior_precision @ vector
        steep = X[:3].clone().requires_grad_()
        la(steep).square().sum().backward()
        assert steep.grad is not None
        found["gradient"] = steep.grad
        for how in ({"method": "marglik"}, {"method": "gridsearch", "val_loader": LOADER}, {"val_loader": LOADER}, {}):
            la.optimize_prior_precision(**how)
            found[f"tuned {how}"] = la(X[:5])
        with tempfile.TemporaryDirectory() as folder:
            bridge.save(la, f"{folder}/la.safetensors")
            again = Laplace(other, "classification", subset, structure, progress=False)
            found["kept"] = bridge.load(f"{folder}/la.safetensors", again)(X[:5])
        found["more"] = la.fit(LOADER, override=False)(X[:5])
        return {name: value.detach().clone() for name, value in found.items()}


if __name__ == "__main__":
    here, there = (story(*sys.argv[1:3], elsewhere=elsewhere) for elsewhere in (False, True))
    for name, value in here.items():
        torch.testing.assert_close(there[name], value, atol=1e-5, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}")
    print(len(here), "of", len(there), "agree")
