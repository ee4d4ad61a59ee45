"""One pass over a loader as a running result, which a checkpoint can take up where it was left."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jax_core.curvature.data_sums import DataSums
from jax_core.data.batches import Batch
from jax_core.data.checkpoint import Checkpoint, Saved
from jax_core.data.passes import LoaderPasses

Carry = TypeVar("Carry")


def fold_batches(
    passes: LoaderPasses,
    start: Callable[[Batch], Carry],
    step: Callable[[Carry, Batch, Callable[..., None]], Carry],
    *,
    label: str | None,
    checkpoint: Checkpoint | None = None,
    resume: bool = True,
) -> tuple[Carry, DataSums]:
    """``carry = step(carry, batch, add)`` over a pass, from ``start`` of its first batch.

    Args:
        passes: The data.
        start: The first carry, a pytree of arrays.
        step: ``add(sums)`` counts a batch, or a part of one.
        label: Of a progress bar.
        checkpoint: Where the carry is kept from time to time. Batches that are in it are read and not worked on.
        resume: Whether to look at what the checkpoint holds.

    Returns:
        The last carry, and what the batches add up to.
    """
    saved = checkpoint.latest() if checkpoint is not None and resume else None
    sums, carry, done = DataSums(), None, 0
    for number, batch in enumerate(passes if label is None else passes.with_progress(label)):
        if carry is None:
            carry = start(batch)
            if saved is not None:
                *arrays, counted = saved.arrays
                carry = like_carry(carry, arrays)
                sums.restore(counted)
        done = number + 1
        if saved is not None and done <= saved.done:
            if done == saved.done and not is_same_data(saved, (done, *passes.mark(done))):
                return fold_batches(passes, start, step, label=label, checkpoint=checkpoint, resume=False)
            continue
        carry = step(carry, batch, lambda part, number=number: sums.add(part, number))
        if checkpoint is not None:
            checkpoint.offer(
                [*map(np.asarray, jax.tree.leaves(carry)), sums.as_array()], done, (done, *passes.mark(done))
            )
    assert carry is not None  # a loader without samples has raised
    if checkpoint is not None:
        checkpoint.save([*map(np.asarray, jax.tree.leaves(carry)), sums.as_array()], done, (done, *passes.mark(done)))
    return carry, sums


def is_same_data(saved: Saved, mark: Sequence[int]) -> bool:
    """Whether the batches behind a state are those that this pass has shown, with a warning if they are not."""
    if list(mark) == saved.mark:
        return True
    warnings.warn(
        "The checkpoint's batches are not those that the loader shows now (it shuffles, or its data changed): the pass "
        "starts from its beginning. A loader with shuffle=False, or with a seeded generator, can go on.",
        stacklevel=2,
    )
    return False


def like_carry(carry: Carry, arrays: list[np.ndarray]) -> Carry:
    """Arrays in the structure, the types and on the devices of a carry."""
    leaves, treedef = jax.tree.flatten(carry)
    placed = [
        jax.device_put(jnp.asarray(array, leaf.dtype).reshape(leaf.shape), leaf.sharding)
        for array, leaf in zip(arrays, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, placed)
