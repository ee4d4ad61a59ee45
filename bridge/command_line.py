"""``bridge explain module:factory`` and ``bridge doctor``: what can be carried, and whether it can be computed here."""

from __future__ import annotations

import argparse
import difflib
import importlib
import importlib.metadata
import inspect
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import torch

from bridge.tracing import TraceError, explain

PROJECT = "torch-laplace-bridge"
_PACKAGES = ("torch", "jax", "jaxlib", "numpy", "scipy", "safetensors")
_BAD = {
    ("jaxlib", "0.10.2"): "it sums wrongly on the CPU, without a word (github.com/jax-ml/jax/issues/39103). "
    "Install another: pip install 'jaxlib!=0.10.2'",
}
_SETTINGS = ("JAX_PLATFORMS", "JAX_ENABLE_X64", "JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS", "CUDA_VISIBLE_DEVICES")


class UsageError(ValueError):
    """What was asked for cannot be done: the message names the cause and the remedy."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: In place of those of the process.

    Returns:
        The exit status: 0 if all is well; 1 if the model cannot be carried, or a release here is a bad one; 2 if the
        command was not understood.
    """
    parser = argparse.ArgumentParser("bridge", description="Laplace approximations for PyTorch models, on JAX.")
    parser.add_argument("--version", action="version", version=f"{PROJECT} {version(PROJECT) or 'not installed'}")
    commands = parser.add_subparsers(dest="command", required=True)
    explained = commands.add_parser("explain", help="list a model's operators, and which of them cannot be carried")
    explained.add_argument(
        "target",
        metavar="module:factory",
        help="a function without arguments that returns (model, example input), or a model with an example_input_array",
    )
    commands.add_parser("doctor", help="show versions, devices and settings, and name releases known to be bad")
    given = parser.parse_args(arguments)
    if given.command == "doctor":
        return _doctor()
    try:
        return _explain(given.target)
    except UsageError as error:
        print(f"bridge explain: {error}", file=sys.stderr)
        return 2


def version(package: str) -> str | None:
    """The version that is installed, or ``None``."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def bad_releases(versions: Mapping[str, str | None]) -> list[str]:
    """A line for each release that is known to compute wrongly, with the remedy."""
    return [f"{package} {bad}: {why}" for (package, bad), why in _BAD.items() if (versions.get(package) or "") == bad]


def _doctor() -> int:
    versions = {package: version(package) for package in (PROJECT, *_PACKAGES)}
    rows = {"python": f"{platform.python_version()}, {platform.machine()} {platform.system()}"}
    rows |= {package: found or "not installed" for package, found in versions.items()}
    rows["torch"] = torch.__version__  # says the CUDA that it was built for, too
    rows["torch's devices"] = ", ".join(_torch_devices())
    rows["jax's devices"] = ", ".join(f"{d.platform}:{d.id} ({d.device_kind})" for d in jax.devices())
    rows["jax_enable_x64"] = (
        f"{jax.config.read('jax_enable_x64')} (for bridge.trace of float64 models; Laplace needs no switch)"
    )
    rows |= {name: os.environ[name] for name in _SETTINGS if name in os.environ}
    for name, value in rows.items():
        print(f"{name:28}{value}")
    if torch.cuda.is_available() and jax.default_backend() == "cpu":
        print("\nTorch sees a GPU and jax none: models there are worked on through the host. Install the extra 'cuda'.")
    bad = bad_releases(versions)
    print("\n".join(["", *(f"Bad: {line}." for line in bad)]) if bad else "\nNo release here is known to be bad.")
    return int(bool(bad))


def _torch_devices() -> list[str]:
    names = [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    return ["cpu", *names]


def _explain(target: str) -> int:
    model, example = _made(target)
    try:
        explanation = explain(model, example)
    except TraceError as error:
        print(f"{target} cannot be carried: {error}", file=sys.stderr)
        return 1
    print(explanation)
    if explanation.missing:
        print(f"\nNo lowering for {', '.join(explanation.missing)}. Register one with @bridge.lowers(...).")
        return 1
    print("\nEvery operator can be carried.")
    return 0


def _made(target: str) -> tuple[torch.nn.Module, Any]:
    """The model and the example input that a factory makes.

    Raises:
        UsageError: If there is no such module or factory, or it does not return what is asked for.
    """
    made = _factory(target)()
    model, example = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, torch.nn.Module):
        raise UsageError(
            f"{target} returned a {type(made).__name__}. Return a torch.nn.Module, or (model, example input)."
        )
    if example is None:
        example = getattr(model, "example_input_array", None)  # where Lightning keeps one
    if example is None:
        raise UsageError(
            f"{target} returned a model without an input to show it with. Return (model, example input), the second a "
            "tensor, a tuple or a mapping, with a batch of two or more."
        )
    return model, example


def _factory(target: str) -> Any:
    where, colon, name = target.partition(":")
    if not (where and colon and name):
        raise UsageError(f"{target!r} names no factory. Write module:factory, as in my_package.models:make_model.")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as with `python -m`: a user's own files are found where they stand
    try:
        module = importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is None or not where.startswith(error.name):
            raise  # a package that the module itself needs
        raise UsageError(
            f"no module {error.name!r}. Give its dotted name, not a path, and run this where it can be imported: in "
            "its folder, or with PYTHONPATH set."
        ) from error
    if not hasattr(module, name):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        near = difflib.get_close_matches(name, public, n=3) or public[:10]
        raise UsageError(f"{where} has no {name!r}. It has {', '.join(near) or 'nothing that can be called'}.")
    factory = getattr(module, name)
    if isinstance(factory, torch.nn.Module) or not callable(factory):
        raise UsageError(
            f"{target} is a {type(factory).__name__}. Give a function that returns (model, example input)."
        )
    needed = [
        p.name
        for p in inspect.signature(factory).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if needed:
        raise UsageError(
            f"{target} needs arguments: {', '.join(needed)}. Give a function without any, which calls it with them."
        )
    return factory
