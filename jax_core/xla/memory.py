"""What fits into memory, asked before work begins."""

from __future__ import annotations

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
