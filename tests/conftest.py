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
