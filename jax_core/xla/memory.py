"""What fits into memory, asked before work begins."""

from __future__ import annotations

import warnings
from typing import Any


def free_bytes(device: Any) -> int | None:
    """Memory that is free on a device; ``None`` where nothing says so."""
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0) if "bytes_limit" in stats else None
    try:
        with open("/proc/meminfo") as file:
            entries = dict(line.split(":", 1) for line in file)
        return int(entries["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # no Linux: nothing says so
        return None


def gibibytes(count: float) -> str:
    """A number of bytes for a message."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 / 10 else f"{count / 2**20:.0f} MiB"


def half_after(error: RuntimeError, size: int, what: str) -> int:
    """Half of a number of samples, with a warning, after an error that says that they took too much memory.

    Raises:
        RuntimeError: The error itself, if it says something else, or there was one sample.
    """
    if "RESOURCE_EXHAUSTED" not in str(error) or size <= 1:
        raise error
    half = -(-size // 2)
    warnings.warn(
        f"Memory ran out with {size} samples at once: {what} begins anew with {half}. Smaller batches save the trial.",
        stacklevel=3,
    )
    return half
