"""Run a traced function equation by equation, so that single ones can be watched or replaced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.core
from jax.extend.core import Literal, primitives

Visit: TypeAlias = Callable[[Any, list[Any], Callable[[], list[Any]]], list[Any]]
"""``(equation, operands, evaluate) -> results``; ``evaluate()`` gives what the equation itself would."""


class Tracked(NamedTuple):
    """A value with a label that follows it as long as it is used once; elsewhere it is its value alone.

    A shared label follows its value to each of its uses.
    """

    label: Any
    value: Any
    shared: bool = False


def value_of(operand: Any) -> Any:
    """An operand without its label."""
    return operand.value if isinstance(operand, Tracked) else operand


def interpret(jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any], visit: Visit) -> list[Any]:
    """The results of a program, with ``visit`` called for every equation; compiled functions inside it are entered."""
    values: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))
    atoms = [atom for equation in jaxpr.eqns for atom in equation.invars] + list(jaxpr.outvars)
    uses = Counter(atom for atom in atoms if not isinstance(atom, Literal))

    def read(atom: Any) -> Any:
        if isinstance(atom, Literal):
            return atom.val
        value = values[atom]
        followed = uses[atom] == 1 or (isinstance(value, Tracked) and value.shared)
        return value if followed else value_of(value)

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        if equation.primitive is primitives.jit_p:
            inner = equation.params["jaxpr"]
            results = interpret(inner.jaxpr, inner.consts, operands, visit)
        else:
            results = visit(equation, operands, lambda e=equation, o=operands: _evaluate(jaxpr, e, o))
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _evaluate(jaxpr: Any, equation: Any, operands: list[Any]) -> list[Any]:
    """One equation as a program of its own: how a primitive is bound is JAX's affair."""
    given = {
        atom: value_of(value)
        for atom, value in zip(equation.invars, operands, strict=True)
        if not isinstance(atom, Literal)
    }
    # The description of arguments and results belongs to the whole program, and is checked against their number.
    named = jaxpr.debug_info._replace(arg_names=("",) * len(given), result_paths=("",) * len(equation.outvars))
    alone = jaxpr.replace(
        constvars=[], invars=[*given], outvars=list(equation.outvars), eqns=[equation], debug_info=named
    )
    return jax.core.eval_jaxpr(alone, [], *given.values())
