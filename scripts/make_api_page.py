"""Write docs/api.md: every public name with its signature and docstring, in the order of the data.

python scripts/make_api_page.py
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import bridge  # noqa: E402
import jax_core  # noqa: E402
from jax_core import tutorial_api  # noqa: E402

# the parts of the core in the order in which data pass through them
ORDER = (
    *("likelihoods", "data", "curvature", "gradients", "matrix_free", "lowrank", "operators", "fit", "posterior"),
    *("predictive", "evaluation", "tuning"),
)
HEAD = """# Public names

Written by `scripts/make_api_page.py` from the docstrings. `jax_core` takes models as `model_fn(input, params)` of one
example; `bridge` takes `torch.nn.Module`s.
"""


def signature(value: object) -> str:
    """As written in the source, without the module names of annotations."""
    try:
        written = str(inspect.signature(value))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ""
    written = re.sub(r"<function (\w+) at 0x\w+>", r"\1", written)
    return re.sub(r"(: |-> )'([^']*)'", r"\1\2", written)


def entry(name: str, value: object) -> str:
    """One name: heading, signature, docstring; of a class, its public methods too."""
    kind = "class " if inspect.isclass(value) else ""
    parts = [f"### `{kind}{name}`", text(value)]
    if callable(value) and not (inspect.isclass(value) and issubclass(value, Exception)):
        parts.insert(1, f"```python\n{name}{signature(value)}\n```")
    if inspect.isclass(value):
        if getattr(vars(value).get("__init__"), "__doc__", None):
            parts.append(text(vars(value)["__init__"]))
        members = [
            f"- `.{key}{signature(member) if callable(member) else ''}`: {first_line(member)}"
            for key, member in own_members(value).items()
            if not key.startswith("_")
            and (inspect.isfunction(member) or isinstance(member, property | cached_property))
        ]
        parts.append("\n".join(members))
    return "\n\n".join(part for part in parts if part)


def own_members(value: type) -> dict[str, object]:
    """What a class has from itself and from the classes of these packages behind it, each name once."""
    ours = [base for base in value.__mro__ if base.__module__.split(".")[0] in ("bridge", "jax_core")]
    found: dict[str, object] = {}
    for base in ours:
        found |= {key: member for key, member in vars(base).items() if key not in found}
    return found


def text(value: object) -> str:
    """The docstring as a block that keeps its lines."""
    doc = inspect.getdoc(value) or ""
    return f"```text\n{doc}\n```" if doc and callable(value) else ""


def first_line(member: object) -> str:
    """The summary of a method or property."""
    return (inspect.getdoc(member) or "").split("\n")[0]


def part_of(value: object) -> str:
    """`jax_core.lowrank.lanczos` -> `lowrank`."""
    return getattr(value, "__module__", "").split(".")[1] if "." in getattr(value, "__module__", "") else ""


def section(names: Iterable[str], module: ModuleType) -> dict[str, list[str]]:
    """Public names of a package by the part that defines them."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(part_of(getattr(module, name)), []).append(name)
    return found


def page() -> str:
    """The whole page."""
    tutorial = set(tutorial_api.__all__)
    core = section([name for name in jax_core.__all__ if name not in tutorial], jax_core)
    order = [*ORDER, *(part for part in core if part not in ORDER)]
    lines = [HEAD, "# `bridge`"]
    lines += [entry(name, getattr(bridge, name)) for name in bridge.__all__]
    lines.append("# `jax_core`")
    for part in order:
        if part in core:
            lines.append(f"## {part.replace('_', ' ') or 'types'}")
            lines += [entry(name, getattr(jax_core, name)) for name in core[part]]
    lines.append("# `jax_core.tutorial_api`")
    lines += [entry(name, getattr(tutorial_api, name)) for name in tutorial_api.__all__]
    return "\n\n".join(lines) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "api.md").write_text(page())
