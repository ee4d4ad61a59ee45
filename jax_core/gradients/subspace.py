"""What the Jacobians of many examples are multiplied with."""

from __future__ import annotations

import jax

from jax_core.gradients.factored import Layout
from jax_core.gradients.rotated import Coordinates
from jax_core.gradients.weight_order import Order
from jax_core.operators import Projection
from jax_core.types import Params


class Subspace:
    """A projection over the flattened parameters, remembered in the order and layout of the latest Jacobians.

    Attributes:
        projection: As given.
    """

    def __init__(self, projection: Projection) -> None:
        """Bind the projection."""
        self.projection = projection
        self._latest: tuple[Order, Layout, Coordinates] | None = None

    def cut(self, params: Params, order: Order, layout: Layout) -> Coordinates:
        """The projection as rows of a layout meet it."""
        if self._latest is None or self._latest[:2] != (order, layout):
            with jax.ensure_compile_time_eval():  # what is remembered must not belong to a program that is being traced
                ordered = self.projection if order.as_stored else self.projection.permute(order.positions(params))
                self._latest = order, layout, Coordinates.of(ordered, layout)
        return self._latest[2]
