"""Vectors that the Jacobians of many examples are multiplied with."""

from __future__ import annotations

import jax
from jaxtyping import Array, Float

from jax_core.gradients.factored import Layout, Parts
from jax_core.gradients.weight_order import Order
from jax_core.types import Params


class Subspace:
    """Columns over the flattened parameters, remembered as rows in the order and layout of the latest Jacobians.

    Attributes:
        columns: As given.
    """

    def __init__(self, columns: Float[Array, "P R"]) -> None:
        """Bind the columns."""
        self.columns = columns
        self._latest: tuple[Order, Layout, Parts] | None = None

    def cut(self, params: Params, order: Order, layout: Layout) -> Parts:
        """The columns as rows for :meth:`~jax_core.gradients.factored.FactoredRows.times_rows`."""
        if self._latest is None or self._latest[:2] != (order, layout):
            with jax.ensure_compile_time_eval():  # what is remembered must not belong to a program that is being traced
                columns = self.columns if order.as_stored else self.columns[order.positions(params)]
                self._latest = order, layout, layout.split(columns.T)
        return self._latest[2]
