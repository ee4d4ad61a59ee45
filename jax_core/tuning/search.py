"""Searches over prior precisions: a grid, and gradients of a differentiable loss."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from tqdm.auto import tqdm

from jax_core.tuning.tuned import Tuned


def log_grid(low: float = 1e-4, high: float = 1e6, num: int = 21) -> np.ndarray:
    """Precisions evenly spaced in their logarithm.

    Raises:
        ValueError: Unless ``0 < low < high`` and ``num`` is at least two.
    """
    if not (0 < low < high < float("inf") and num >= 2):
        raise ValueError(f"A grid from {low} to {high} with {num} points: give 0 < low < high and two points or more.")
    return np.geomspace(low, high, num)


def checked_grid(precisions: Any) -> np.ndarray:
    """Precisions in ascending order.

    Raises:
        ValueError: If there is none, or one is not positive and finite.
    """
    grid = np.sort(np.asarray(precisions, np.float64).reshape(-1))
    if not (grid.size and np.isfinite(grid).all() and (grid > 0).all()):
        raise ValueError(f"The grid {grid} must hold positive, finite prior precisions.")
    return grid


def grid_search(losses: Callable[[np.ndarray], np.ndarray], precisions: Any = None) -> Tuned:
    """The precision of a grid with the smallest loss.

    Args:
        losses: From all precisions ``(T,)`` to the loss of each, in one call, so that what they share is computed
            once (see :func:`~jax_core.tuning.held_out.held_out_losses`).
        precisions: The grid; :func:`log_grid` by default.

    Raises:
        ValueError: If a precision is not positive and finite, or no loss is finite.

    Warns:
        UserWarning: If the smallest loss lies at an edge of the grid.
    """
    grid = checked_grid(log_grid() if precisions is None else precisions)
    found = np.asarray(losses(grid), np.float64)
    if not np.isfinite(found).any():
        raise ValueError("No prior precision of the grid has a finite loss. Look at the predictions and the targets.")
    best = int(np.nanargmin(np.where(np.isfinite(found), found, np.nan)))
    if best in (0, len(grid) - 1) and len(grid) > 1:
        warnings.warn(
            f"The best prior precision, {grid[best]:.3g}, lies at the edge of the grid from {grid[0]:.3g} to "
            f"{grid[-1]:.3g}. Widen the grid"
            + (", or read it as advice to keep the network's own predictions." if best else "."),
            stacklevel=2,
        )
    return Tuned(float(grid[best]), float(found[best]), grid, found)


def gradient_descent(
    loss: Callable[[Float[Array, " *L"]], Float[Array, ""]],
    start: Any,
    *,
    optimizer: Any = None,
    steps: int = 200,
    step_size: float = 0.1,
    progress: bool = False,
) -> Tuned:
    """Minimise a loss in the logarithm of the precision; for the evidence this is gradient ascent.

    Args:
        loss: Differentiable, of a precision shaped like ``start``; for instance
            :func:`~jax_core.tuning.evidence.evidence_loss`.
        start: A number, or one per layer.
        optimizer: An optax gradient transformation; Adam by default.
        steps: Steps.
        step_size: Of Adam, in the logarithm.
        progress: Show a progress bar.

    Returns:
        The best point of the path, and the path.

    Raises:
        ImportError: Without optax.
        ValueError: If ``start`` is not positive or the loss is not finite there.
    """
    try:
        import optax  # an optional dependency: only this search needs it
    except ImportError as error:
        raise ImportError("A search by gradients needs optax: pip install 'torch-laplace-bridge[tuning]'.") from error

    precision = jnp.asarray(start, jnp.result_type(float))
    if not bool((precision > 0).all()):
        raise ValueError(f"A search cannot start at prior_precision={start}. Give positive numbers.")
    rule = optax.adam(step_size) if optimizer is None else optimizer
    value_and_grad = jax.jit(jax.value_and_grad(lambda log_precision: loss(jnp.exp(log_precision))))
    point = jnp.log(precision)
    state, path, losses = rule.init(point), [], []
    for step in tqdm(range(steps), desc="Prior precision", disable=not progress, leave=False, delay=1):
        value, gradient = value_and_grad(point)
        if step == 0 and not bool(jnp.isfinite(value)):
            raise ValueError(f"The loss is {float(value)} at the start, prior_precision={start}.")
        path.append(np.exp(np.asarray(point)))
        losses.append(float(value))
        updates, state = rule.update(gradient, state, point)
        point = optax.apply_updates(point, updates)
    path.append(np.exp(np.asarray(point)))
    losses.append(float(value_and_grad(point)[0]))
    best = int(np.nanargmin(losses))
    chosen = path[best]
    return Tuned(float(chosen) if chosen.ndim == 0 else chosen, losses[best], np.stack(path), np.array(losses))
