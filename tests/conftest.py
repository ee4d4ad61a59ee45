"""Settings that every test shares."""

import os

# Before anything imports matplotlib: tests draw to memory, never to a window.
os.environ.setdefault("MPLBACKEND", "Agg")

from hypothesis import settings

# Compilation makes first examples slow, so no deadline; derandomised, so that a red run can be repeated.
settings.register_profile("suite", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("suite")
