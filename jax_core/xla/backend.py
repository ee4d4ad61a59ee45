"""Which backend programs are made for: lowerings and sizes are chosen by it."""

from __future__ import annotations

import jax


def platform() -> str:
    """The platform of ``jax.default_device`` where one is set, of JAX's default backend otherwise."""
    device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform
