"""The laws of the folders: who may import whom, how long a file may be, what an import may load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("bridge", "jax_core")
MAX_LINES = 300

# The core from the ground up, in the order in which data pass through it: part -> the parts that it may import.
# Nothing is left out, so that this is the picture of the floors.
GROUND = {"types", "data", "xla"}
MAY_IMPORT = {
    "types": set(),
    "data": {"types"},
    "xla": {"types", "data"},
    "likelihoods": {"types"},
    "frozen": GROUND,
    "matrix_free": GROUND,
    "curvature": GROUND | {"likelihoods"},
    "operators": GROUND,
    "gradients": GROUND | {"likelihoods", "curvature", "operators"},
    "lowrank": GROUND | {"operators"},
    "source": GROUND | {"likelihoods", "curvature", "gradients", "lowrank", "operators"},
    "kronecker": GROUND | {"curvature", "gradients", "lowrank", "operators", "source"},
    "left_out": {"likelihoods", "operators"},
    "posterior": GROUND | {"gradients", "operators"},
    "fitted": {"left_out", "likelihoods", "lowrank", "operators", "posterior"},
    "fit": GROUND
    | {"frozen", "likelihoods", "curvature", "gradients", "lowrank", "operators"}
    | {"source", "kronecker", "left_out", "fitted"},
    "predictive": GROUND | {"gradients", "operators", "posterior"},
    "evaluation": {"types"},
    "tuning": GROUND | {"evaluation", "gradients", "likelihoods", "operators", "posterior", "predictive"},
    "plots": {"types"},
    "tutorial_api": GROUND
    | {"likelihoods", "matrix_free", "curvature", "operators", "gradients", "lowrank"}
    | {"posterior", "predictive", "evaluation", "tuning", "plots"},
}
OPTIONAL = ("matplotlib", "optax", "flax", "torch2jax", "torchvision", "sklearn")
OPTIONAL += ("transformers", "peft", "lightning", "timm", "torchmetrics")


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imported_modules(path: Path, *, top_level_only: bool = False) -> set[str]:
    """The absolute dotted names of everything that a file imports."""
    tree = ast.parse(path.read_text())
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found: set[str] = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *((node.module or "").split(".") if node.module else ())))
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def core_part(module: str) -> str | None:
    """`jax_core.lowrank.lanczos` -> `lowrank`; None for what lies outside the core."""
    parts = module.split(".")
    return parts[1] if parts[0] == "jax_core" and len(parts) > 1 else None


def loaded_by(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after a statement."""
    code = f"{statement}\nimport sys; print(*{{m.split('.')[0] for m in sys.modules}})"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(out.stdout.split())


@pytest.mark.parametrize("path", python_files("jax_core"), ids=lambda p: str(p.relative_to(ROOT)))
def test_core_never_imports_torch_or_bridge(path):
    assert not {name.split(".")[0] for name in imported_modules(path)} & {"torch", "bridge"}


@pytest.mark.parametrize("part", sorted(MAY_IMPORT))
def test_core_part_imports_only_the_parts_before_it(part):
    files = python_files(f"jax_core/{part}") or [ROOT / "jax_core" / f"{part}.py"]
    names = {entry.stem for entry in (ROOT / "jax_core").iterdir()}
    for path in files:
        siblings = {core_part(name) for name in imported_modules(path)} & names
        assert siblings <= MAY_IMPORT[part] | {part}, f"{path.relative_to(ROOT)} imports {siblings}"


def test_picture_of_the_core_is_whole_and_runs_one_way():
    parts = {e.stem for e in (ROOT / "jax_core").iterdir() if e.is_dir() or e.suffix == ".py"}
    assert set(MAY_IMPORT) == parts - {"__init__", "__pycache__"}
    below: set[str] = set()
    for part, imports in MAY_IMPORT.items():
        assert imports <= below, f"{part} may import {imports - below}, which stand no lower"
        below.add(part)


def test_tensor_conversion_has_one_home():
    allowed = ROOT / "bridge" / "tensors.py"
    offenders = [p for p in python_files(*PACKAGES) if p != allowed and "dlpack" in str(imported_modules(p))]
    assert not offenders


@pytest.mark.parametrize("path", python_files(*PACKAGES), ids=lambda p: str(p.relative_to(ROOT)))
def test_optional_packages_are_imported_only_where_used(path):
    top = {name.split(".")[0] for name in imported_modules(path, top_level_only=True)}
    assert not top & set(OPTIONAL)


@pytest.mark.parametrize(
    "path",
    python_files(*PACKAGES, "tests", "examples", "benchmarks", "scripts"),
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_file_is_short(path):
    assert len(path.read_text().splitlines()) <= MAX_LINES


def test_importing_the_core_loads_no_torch():
    assert not loaded_by("import jax_core") & {"torch", "bridge", *OPTIONAL}


def test_importing_the_bridge_loads_no_optional_package():
    assert not loaded_by("import bridge") & set(OPTIONAL)


def test_dataclasses_are_registered_by_types_pytree():
    """Which says what jax.tree_util.register_dataclass gets wrong."""
    named = [path for path in python_files(*PACKAGES) if "@jax.tree_util.register" in path.read_text()]
    assert not named, named
