"""Settings that every test shares."""

import gc
import os
from collections import defaultdict
from pathlib import Path

# Before anything imports matplotlib: tests draw to memory, never to a window.
os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import jaxtyping
import pytest
from hypothesis import settings

# Annotations are checked as the tests call them: types, dtypes, and shapes of arrays. Not where models are traced: what
# is told of them names lines of code, and random numbers that they draw.
_EDGE = (path.stem for path in (Path(__file__).parents[1] / "bridge").glob("*.py") if path.stem != "__init__")
jaxtyping.install_import_hook(["jax_core", *(f"bridge.{name}" for name in _EDGE)], "annotation_checker.checked")

# Compilation makes first examples slow, so no deadline; derandomised, so that a red run can be repeated.
settings.register_profile("suite", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("suite")


def pytest_collection_modifyitems(config, items):
    """Of files marked `in_turns` the third that BRIDGE_TURN names, 0, 1 or 2: neighbours, which share models."""
    turn = os.environ.get("BRIDGE_TURN", "all")
    if turn == "all":
        return
    files = defaultdict(list)
    for item in items:
        if item.get_closest_marker("in_turns"):
            files[item.path].append(item)
    waits = {item for file in files.values() for i, item in enumerate(file) if 3 * i // len(file) != int(turn)}
    config.hook.pytest_deselected(items=list(waits))
    items[:] = [item for item in items if item not in waits]


@pytest.fixture(autouse=True, scope="module")
def few_memory_maps():
    """Drop compiled programs before there are too many.

    Each takes memory maps, of which Linux allows 65,530 (beyond, XLA aborts the process within a compilation), and
    memory: 30,000 maps are about six gigabytes.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 12_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def x64():
    """Float64 for one test, without touching the global configuration."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def unchecked_annotations():
    """For arguments of other types than annotated, whose refusal is under test."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def compilations(caplog):
    """How often programs of a name were compiled since the test began, by what JAX logs.

    A cache's own size is no count: it is shared with other tests' programs and shrinks when theirs are dropped.
    """

    def count(program):
        return sum(record.getMessage().startswith(f"Compiling jit({program.__name__})") for record in caplog.records)

    with jax.log_compiles(), caplog.at_level("WARNING", logger="jax"):
        yield count
