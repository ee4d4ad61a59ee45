"""A matrix that each step of a loop multiplies by, as the recurrent one of an LSTM: a product with a vector a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
from jax import lax
from jaxtyping import Array

from jax_core.gradients.product import Product, Results
from jax_core.xla.interpret import Visit, interpret, value_of

Watch: TypeAlias = Callable[[Callable[[Product], Results], Callable[[int], None]], Visit]
"""From what is done with a product, and with a leaf that something else becomes of, to what visits equations."""


def loop_product(
    equation: Any, operands: list[Any], side: int, evaluate: Callable[[], list[Any]], watch: Watch
) -> Product | None:
    """The product that ``lax.scan`` is of a leaf that all steps share, if each multiplies by it once and no more.

    Its vectors are those of the steps in their order along the scanned axis, its result all that the loop gives.
    """
    label, options = operands[side].label, equation.params
    first, states = options["num_consts"], options["num_carry"]
    if side >= first or label.scale is not None:
        return None
    values = [value_of(operand) for operand in operands]
    shared, carry, scanned = values[:first], values[first : first + states], values[first + states :]

    def step(state: Any, at: Any, on_product: Callable[[Product], Results], on_escape: Callable[[int], None]) -> Any:
        body, given = options["jaxpr"], [*shared, *state, *at]
        given[side] = operands[side]
        return [value_of(result) for result in interpret(body.jaxpr, body.consts, given, watch(on_product, on_escape))]

    found = _seen(step, carry, [x[0] for x in scanned]) if options["length"] else None
    if found is None:
        return None
    product, (count, width), outs = found

    def run(probes: Array | None) -> tuple[list[Any], Array]:
        def body(state: Any, given: Any) -> tuple[Any, Any]:
            at, probe = given
            met: list[Array] = []

            def tap(inner: Product) -> Results:
                met.append(inner.vectors())
                return inner.result if probe is None else inner.add(probe)

            results = step(state, at, tap, lambda leaf: None)
            return results[:states], (results[states:], met[0])

        last, (each, vectors) = lax.scan(
            body, carry, (scanned, probes), length=options["length"], reverse=options["reverse"]
        )
        return [*last, *each], vectors

    return Product(
        label.leaf,
        product.out_axes,
        product.in_axes,
        lambda: run(None)[1].reshape(-1, width),
        lambda probe: run(probe.reshape(-1, count, outs))[0],
        evaluate(),
    )


def _seen(step: Callable[..., Any], carry: Any, at: Any) -> tuple[Product, tuple[int, int], int] | None:
    """The one product of a step, the shape of its vectors, and its outputs."""
    products: list[Product] = []
    shapes: list[tuple[int, ...]] = []
    lost: list[int] = []

    def note(product: Product) -> Results:
        products.append(product)
        shapes.append(product.vectors().shape)
        return product.result

    jax.eval_shape(lambda state, x: step(state, x, note, lost.append), carry, at)
    if len(products) != 1 or lost or products[0].is_table or products[0].scale is not None:
        return None
    (count, width), result = shapes[0], products[0].result
    return None if isinstance(result, list) else (products[0], (count, width), result.size // count)
