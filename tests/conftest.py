"""Settings that every test shares."""

import os

# Before anything imports matplotlib: tests draw to memory, never to a window.
os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import pytest
from hypothesis import settings

# Compilation makes first examples slow, so no deadline; derandomised, so that a red run can be repeated.
settings.register_profile("suite", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("suite")


@pytest.fixture
def x64():
    """Float64 for one test, without touching the global configuration."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def compilations(caplog):
    """How often programs of a name were compiled since the test began, by what JAX logs.

    A cache's own size is no count: it is shared with other tests' programs and shrinks when theirs are dropped.
    """

    def count(program):
        return sum(record.getMessage().startswith(f"Compiling jit({program.__name__})") for record in caplog.records)

    with jax.log_compiles(), caplog.at_level("WARNING", logger="jax"):
        yield count
