"""The package that users install: what is in it, and the five lines where nothing of this folder can be seen."""

import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FIVE_LINES = """
import torch
from torch.utils.data import DataLoader, TensorDataset
from bridge import Laplace
import bridge, jax_core
assert "site-packages" in bridge.__file__ and bridge.__file__.startswith({venv!r}), bridge.__file__
assert jax_core.__file__.startswith({venv!r}), jax_core.__file__
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
loader = DataLoader(TensorDataset(torch.randn(60, 4), torch.arange(60) % 3), batch_size=20)
la = Laplace(model, likelihood="classification", rank=10, progress=False)
la.fit(loader)
la.optimize_prior_precision(val_loader=loader)
probabilities = la(torch.randn(5, 4))
assert torch.allclose(probabilities.sum(1), torch.ones(5), atol=1e-5)
"""


def run(*command, cwd):
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The source distribution, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """An environment with the wheel alone; its dependencies are seen where they lie, without their ``.pth`` files."""
    venv = tmp_path_factory.mktemp("empty") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=venv.parent)
    pip = (sys.executable, "-m", "pip", "--python", venv / "bin" / "python")
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", built[1], cwd=venv.parent)
    (own,) = venv.glob("lib/python*/site-packages")
    (own / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return venv


@pytest.mark.slow
def test_wheel_holds_both_packages_with_their_types_and_nothing_else(built):
    with zipfile.ZipFile(built[1]) as packed:
        names = packed.namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"bridge", "jax_core", "torch_laplace_bridge"}
    assert {"bridge/py.typed", "jax_core/py.typed", "bridge/__main__.py"} <= set(names)
    sources = {str(p.relative_to(ROOT)) for part in ("bridge", "jax_core") for p in (ROOT / part).rglob("*.py")}
    assert sources == {name for name in names if name.endswith(".py")}
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_source_distribution_holds_what_a_build_needs_and_no_data(built):
    with tarfile.open(built[0]) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "bridge/py.typed", "jax_core/py.typed"} <= names
    assert not any(name.endswith(".npz") or name.startswith((".venv", "results")) for name in names)


@pytest.mark.slow
def test_five_lines_run_where_only_the_wheel_is_installed(installed, tmp_path):
    run(installed / "bin" / "python", "-I", "-c", FIVE_LINES.format(venv=str(installed)), cwd=tmp_path)


@pytest.mark.slow
def test_command_is_installed_with_the_wheel(installed, tmp_path):
    assert run(installed / "bin" / "bridge", "--version", cwd=tmp_path).startswith("torch-laplace-bridge ")
    assert "jaxlib" in run(installed / "bin" / "bridge", "doctor", cwd=tmp_path)
