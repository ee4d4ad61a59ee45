"""What the command line prints, and its exit status: 0 for all well, 1 for a finding, 2 for what it cannot do."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from bridge import command_line
from bridge.command_line import bad_releases, main, version

HERE = __name__


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Ranked(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(torch.cummax(x, 1).values)


class Described(nn.Linear):
    example_input_array = torch.ones(4, 3)


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(4, 3)


def described():
    return Described(3, 2)


def branching():
    return Branches(), torch.ones(4, 3)


def ranked():
    return Ranked(), torch.randn(4, 3)


def bare():
    return nn.Linear(3, 2)


def a_list():
    return [1, 2]


def wide(width, depth=2):
    return nn.Linear(width, depth)


MODULE = nn.Linear(3, 2)
FILE = Path(__file__)


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setitem(sys.modules, "made_here", sys.modules[HERE])


@pytest.mark.parametrize("factory", ["network", "described"])
def test_a_model_that_can_be_carried_is_listed_and_exits_with_0(factory, capsys):
    assert main(["explain", f"made_here:{factory}"]) == 0
    shown = capsys.readouterr().out
    assert "aten.linear" in shown and "gradients agree" in shown and "Every operator can be carried." in shown


def test_an_operator_without_a_lowering_is_named_and_exits_with_1(capsys):
    assert main(["explain", "made_here:ranked"]) == 1
    shown = capsys.readouterr().out
    assert "! aten.cummax" in shown and "Register one with @bridge.lowers" in shown


def test_a_model_that_cannot_be_captured_exits_with_1_and_the_reason(capsys):
    assert main(["explain", "made_here:branching"]) == 1
    assert "cannot be carried" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("made_here", "names no factory. Write module:factory"),
        (":network", "names no factory"),
        ("no_such_package.models:network", "no module 'no_such_package'.*PYTHONPATH"),
        ("made_here:netwrok", "has no 'netwrok'. It has .*network"),
        ("made_here:wide", "needs arguments: width. Give a function without any"),
        ("made_here:MODULE", "is a Linear. Give a function"),
        ("made_here:bare", r"without an input to show it with. Return \(model, example input\)"),
        ("made_here:a_list", "returned a list. Return a torch.nn.Module"),
    ],
)
def test_what_cannot_be_done_exits_with_2_and_names_cause_and_remedy(target, message, capsys):
    assert main(["explain", target]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    with pytest.raises(ValueError, match=message):
        raise ValueError(line)


def test_a_missing_dependency_of_the_users_module_is_not_taken_for_the_module(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import not_installed_anywhere\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        main(["explain", "needs_more:factory"])


def test_doctor_shows_versions_devices_and_settings(capsys, monkeypatch):
    monkeypatch.setattr(command_line, "bad_releases", lambda versions: [])
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for text in ("python", torch.__version__, "jaxlib", "cpu", "jax_enable_x64", "JAX_PLATFORMS", "known to be bad"):
        assert text in shown


def test_doctor_exits_with_1_where_a_release_is_bad(capsys, monkeypatch):
    monkeypatch.setattr(command_line, "version", lambda package: {"jaxlib": "0.10.2"}.get(package))
    assert main(["doctor"]) == 1
    assert "Bad: jaxlib 0.10.2: it sums wrongly" in capsys.readouterr().out


def test_only_the_bad_release_is_called_bad():
    assert len(bad_releases({"jaxlib": "0.10.2"})) == 1 and "!=0.10.2" in bad_releases({"jaxlib": "0.10.2"})[0]
    assert bad_releases({"jaxlib": "0.10.1", "jax": "0.10.2"}) == [] and bad_releases({"jaxlib": None}) == []
    assert version("no-such-package-at-all") is None


def test_it_runs_as_a_module():
    out = subprocess.run([sys.executable, "-m", "bridge", "--version"], capture_output=True, text=True, check=True)
    assert out.stdout.startswith("torch-laplace-bridge ")
