"""The pages of public names, one for each part of both packages, written anew from the packages at every build."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from sphinx.application import Sphinx

# Parts in the order in which data pass through them: module -> title. A part that is missing here stands at the end.
BRIDGE = {
    "bridge.laplace": "Laplace",
    "bridge.marglik_training": "Training with the evidence",
    "bridge.checkpoint": "Save and load",
    "bridge.subnetworks": "Subnetworks",
    "bridge.tracing": "Tracing",
    "bridge.losses": "Losses",
    "bridge.tensors": "Tensors",
}
CORE = {
    "jax_core.likelihoods": "Likelihoods",
    "jax_core.data": "Data",
    "jax_core.curvature": "Curvature",
    "jax_core.gradients": "Gradients",
    "jax_core.matrix_free": "From products to matrices",
    "jax_core.lowrank": "Low rank",
    "jax_core.operators": "Operators",
    "jax_core.fit": "Fit",
    "jax_core.fitted": "What a fit leaves behind",
    "jax_core.posterior": "Posterior and evidence",
    "jax_core.predictive": "Predictive",
    "jax_core.evaluation": "Evaluation",
    "jax_core.tuning": "Tuning",
    "jax_core.plots": "Plots",
    "jax_core.tutorial_api": "The words of laplax's tutorial",
}
# modules that are public by their own path, beside what the packages' faces name
BY_PATH = ("bridge.subnetworks", "jax_core.plots")


def part_of(value: object, package: str) -> str:
    """`jax_core.lowrank.lanczos` -> `jax_core.lowrank`."""
    return ".".join(getattr(value, "__module__", package).split(".")[:2])


def defined_in(module: ModuleType) -> list[str]:
    """The public functions and classes that a module defines, as it orders them."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__ and callable(value)
    ]


def names_by_part() -> dict[str, list[tuple[str, str]]]:
    """Of each part, `(module under which users find it, name)`."""
    found: dict[str, list[tuple[str, str]]] = {part: [] for part in (*BRIDGE, *CORE)}
    words = set(importlib.import_module("jax_core.tutorial_api").__all__)
    for package in ("bridge", "jax_core"):
        face = importlib.import_module(package)
        for name in face.__all__:
            of_tutorial = package == "jax_core" and name in words
            part = "jax_core.tutorial_api" if of_tutorial else part_of(getattr(face, name), package)
            found.setdefault(part, []).append((package, name))
    for part in ("bridge.tracing", *BY_PATH):
        module = importlib.import_module(part)
        listed = {name for _, name in found[part]}
        names = module.__all__ if hasattr(module, "__all__") else defined_in(module)
        found[part] += [(part, name) for name in names if name not in listed]
    return found


def entry(place: str, name: str) -> Iterator[str]:
    """The directives of one name; of a class, its members and those of the classes of ours behind it."""
    value = getattr(importlib.import_module(place), name)
    if inspect.isclass(value):
        yield f".. autoclass:: {place}.{name}"
        if not issubclass(value, Exception):
            outside = [c.__name__ for c in value.__mro__ if c.__module__.split(".")[0] not in ("bridge", "jax_core")]
            yield from ("   :members:", f"   :inherited-members: {', '.join(outside)}")
    elif callable(value):
        yield f".. autofunction:: {place}.{name}"
    else:
        yield f".. autodata:: {place}.{name}"
        yield "   :no-value:"
    yield ""


def page(part: str, title: str, names: list[tuple[str, str]]) -> str:
    """One page: what the part is for, then its names."""
    lines = [title, "=" * len(title), "", f".. automodule:: {part}"]
    if part in (f"{place}.{name}" for place, name in names):  # a function of its module's name
        lines.append("   :no-index:")
    lines.append("")
    for place, name in names:
        lines += entry(place, name)
    return "\n".join(lines) + "\n"


def index(parts: list[str]) -> str:
    """Where each part is, package by package."""
    lines = ["Reference", "=========", "", "Every public name, written from the packages when this site is built."]
    for package, what in (("bridge", "torch in, torch out"), ("jax_core", "pure JAX")):
        title = f"``{package}``: {what}"
        lines += ["", title, "-" * len(title), "", ".. toctree::", "   :maxdepth: 1", ""]
        lines += [f"   {part}" for part in parts if part.split(".")[0] == package]
    return "\n".join(lines) + "\n"


def write(app: Sphinx) -> None:
    """Write the pages that changed, and none besides."""
    folder = Path(app.srcdir) / "reference"
    folder.mkdir(exist_ok=True)
    titles = BRIDGE | CORE
    found = {part: names for part, names in names_by_part().items() if names}
    wanted = {folder / f"{part}.rst": page(part, titles.get(part, part), names) for part, names in found.items()}
    wanted[folder / "index.rst"] = index(list(found))
    for path in set(folder.glob("*.rst")) - wanted.keys():
        path.unlink()
    for path, text in wanted.items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
