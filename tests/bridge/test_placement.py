"""A model is worked on where it lies; on a machine with a GPU, data from the host go there."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bridge
from bridge import Laplace
from bridge.placement import compiling_for, device_of, place_of
from jax_core.xla.backend import platform

pytestmark = pytest.mark.in_turns

on_a_gpu = pytest.mark.skipif(
    not (torch.cuda.is_available() and jax.default_backend() == "gpu"), reason="needs torch and JAX with a GPU"
)
at_the_edge = pytest.mark.filterwarnings("ignore:The best prior precision")
X, Y = torch.randn(24, 1, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3


def small_cnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)).eval()


def loader() -> DataLoader:
    return DataLoader(TensorDataset(X, Y), batch_size=8)


def fitted(model: nn.Module, loss: nn.Module | str = "classification", **options) -> Laplace:
    return Laplace(model, loss, rank=10, progress=False, **options).fit(loader())


def test_a_model_lies_where_its_first_tensor_does():
    assert device_of(small_cnn()) == torch.device("cpu")
    assert device_of(nn.BatchNorm1d(2, affine=False).to("meta")) == torch.device("meta")
    assert device_of(nn.ReLU()) == torch.device("cpu")


def test_example_on_another_device_than_the_model_is_refused():
    with pytest.raises(bridge.TraceError, match=r"model is on cpu, the example inputs are on meta. Call x.to\('cpu'\)"):
        bridge.trace(small_cnn(), X.to("meta"))


def test_programs_for_a_model_on_the_cpu_are_the_cpus_beside_a_gpu_too(monkeypatch):
    plain = bridge.trace(small_cnn(), X)
    wanted = str(jax.make_jaxpr(plain.apply)(plain.params, bridge.to_jax(X)))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    beside_a_gpu = bridge.trace(small_cnn(), X)
    assert platform() == "gpu"
    with compiling_for(place_of(beside_a_gpu.params)):
        assert platform() == "cpu"
    assert str(jax.make_jaxpr(beside_a_gpu.apply)(beside_a_gpu.params, bridge.to_jax(X))) == wanted


@at_the_edge
def test_every_program_of_a_fit_beside_a_gpu_is_made_for_the_cpu(monkeypatch):
    seen = set()
    core = ("jax_core.curvature.kept_products", "jax_core.xla.chunks", "jax_core.gradients.jacobian_maps")
    for module in ("bridge.tracing.lowering.convolution", *core):
        monkeypatch.setattr(f"{module}.platform", lambda: seen.add(platform()) or platform())
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    la = fitted(small_cnn(), method="lanczos")
    la(X)
    la.optimize_prior_precision("gridsearch", val_loader=loader(), grid=[1.0, 10.0])
    assert platform() == "gpu" and seen == {"cpu"}


@pytest.mark.parametrize(
    "how", [("full", "last_layer"), pytest.param(("kron_lowrank", "all"), marks=pytest.mark.slow)], ids="-".join
)
def test_what_users_do_is_the_same_where_weights_and_data_lie_apart(how):
    plugins = Path(__file__).parents[1] / "plugins"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    path = os.pathsep.join([str(plugins.parents[1]), str(plugins), os.environ.get("PYTHONPATH", "")])
    found = subprocess.run(
        [sys.executable, "-W", "ignore", str(plugins / "story_elsewhere.py"), *how],
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0 and "16 of 16 agree" in found.stdout, found.stderr[-3000:]


@on_a_gpu
@at_the_edge
def test_a_model_on_a_gpu_takes_data_from_the_host_and_gives_what_the_cpu_gives():
    on_cpu, on_gpu = fitted(small_cnn()), fitted(small_cnn().cuda())
    assert {a.platform for leaf in jax.tree.leaves(on_gpu.posterior) for a in leaf.devices()} == {"gpu"}
    torch.testing.assert_close(on_gpu(X), on_cpu(X), atol=1e-4, rtol=1e-4)
    assert on_gpu(X.cuda()).device.type == "cuda"
    for la in (on_cpu, on_gpu):
        la.optimize_prior_precision("gridsearch", val_loader=loader(), grid=[1.0, 10.0])
    assert on_gpu.prior_precision == on_cpu.prior_precision
    np.testing.assert_allclose(on_gpu.log_marginal_likelihood(), on_cpu.log_marginal_likelihood(), rtol=1e-4)


@on_a_gpu
def test_priors_weights_of_the_loss_and_files_may_lie_elsewhere(tmp_path):
    weight = torch.tensor([1.0, 2.0, 0.5])
    model = small_cnn().cuda()
    la = fitted(model, nn.CrossEntropyLoss(weight=weight))
    la.prior_precision = torch.full((sum(p.numel() for p in model.parameters()),), 3.0)
    bridge.save(la, tmp_path / "la.safetensors")
    again = Laplace(copy.deepcopy(model), nn.CrossEntropyLoss(weight=weight.cuda()), rank=10)
    torch.testing.assert_close(bridge.load(tmp_path / "la.safetensors", again)(X), la(X))


@on_a_gpu
def test_recurrent_models_are_traced_on_a_gpu_in_eval_mode():
    model = nn.LSTM(3, 5, batch_first=True).eval().cuda()
    traced = bridge.trace(model, torch.randn(2, 4, 3).cuda())
    assert torch.backends.cudnn.enabled and set(traced.params) == {name for name, _ in model.named_parameters()}
