"""The library leaves JAX's global configuration as the user set it, 64-bit types above all."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import torch
from torch import nn

import bridge.tracing.verify
from bridge import Laplace
from jax_core import create_posterior_fn

ROOT = Path(__file__).resolve().parents[2]


def configuration():
    """As a thread sees it that has entered no context: the global one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: dict(jax.config.values)).result()


@pytest.fixture
def untouched(monkeypatch):
    def refuse(name, value):
        raise AssertionError(f"jax.config.update({name!r}, {value!r})")

    monkeypatch.setattr(jax.config, "update", refuse)
    before = configuration()
    yield before
    assert configuration() == before
    assert jnp.zeros(1).dtype == (jnp.float64 if before["jax_enable_x64"] else jnp.float32)


def test_importing_touches_no_configuration():
    code = "import jax; before = dict(jax.config.values); import bridge; assert dict(jax.config.values) == before"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("method", ["lanczos", "lobpcg", "nystrom"])
def test_reducing_to_a_low_rank_touches_no_configuration(untouched, method):
    root = jax.random.normal(jax.random.key(0), (40, 40))
    posterior = create_posterior_fn(method, mv=lambda v: root @ (root.T @ v), layout=40, rank=4)
    assert posterior({"prior_prec": 1.0}).cov_flat(root[0]).dtype == jnp.float32


def test_float64_work_inside_touches_no_configuration(untouched, monkeypatch):
    """Not even equality is enough in float32, so that tracing looks again in float64, in this thread alone."""
    monkeypatch.setitem(bridge.tracing.verify._TOLERANCE, torch.float32, (-1.0, -1.0))
    inside, run = [], bridge.tracing.verify.traced_results

    def spy(*args, **options):
        inside.append((jnp.zeros(1).dtype, configuration()))
        return run(*args, **options)

    monkeypatch.setattr(bridge.tracing.verify, "traced_results", spy)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    batch = torch.ones(2, 4), torch.tensor([0, 2])
    Laplace(model, hessian_structure="diag", progress=False).fit([batch])
    assert [dtype for dtype, _ in inside] == [jnp.float32, jnp.float64]
    assert all(seen == untouched for _, seen in inside)
