r"""A model as a trunk and a head: $f(x, \theta) = h(g(x), \theta)$ with $g$ all that no parameter reaches.

The traced program of one example is parted by what its equations depend on. Those of the inputs alone are the trunk,
those of a parameter the head, and what neither inputs nor parameters enter (the weights of frozen layers, transposed or
scaled) is computed once. Between trunk and head lie the fewest bytes that a minimum cut finds: where a value is cheaply
had from a smaller one, the head makes it anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
from jax.extend.core import Literal

from jax_core.data.trees import get_bytes
from jax_core.frozen.cut import CHEAP, LAYOUT, smallest_cut
from jax_core.types import ModelFn, Params, pytree
from jax_core.xla.compiled import as_jit_argument, cached_by_shape
from jax_core.xla.interpret import interpret, value_of

_WORTH = 16  # operations of a trunk for each number that it hands over, below which it saves nothing


@pytree
@dataclass(frozen=True)
class Trunk:
    """From one example to its features, a tuple of arrays.

    Attributes:
        program: A jaxpr, of what is bound and then the input's leaves.
        bound: Arrays that it reads beside the input.
    """

    program: Any = field(metadata={"static": True})
    bound: tuple[jax.Array, ...]

    @cached_property
    def written(self) -> int:
        """Bytes that its operations write for one example; what weights alone make is shared by a batch."""
        known, total = set(self.program.invars[len(self.bound) :]), 0
        for equation in self.program.eqns:
            if known & set(_variables(equation.invars)):
                known.update(equation.outvars)
                total += sum(get_bytes(v.aval) for v in equation.outvars)
        return total

    def __call__(self, x: Any) -> tuple[jax.Array, ...]:
        """The features."""
        return tuple(jax.core.eval_jaxpr(self.program, [], *self.bound, *jax.tree.leaves(x)))


@pytree
@dataclass(frozen=True)
class Head:
    """``head(features, params)``, the model's output for one example.

    Attributes:
        program: A jaxpr, of what is bound, the features and the parameters' leaves.
        bound: Arrays that it reads beside those.
        chosen_lowerings: As the model says.
    """

    program: Any = field(metadata={"static": True})
    bound: tuple[jax.Array, ...]
    chosen_lowerings: bool = field(default=False, metadata={"static": True})

    def __call__(self, features: Any, params: Params) -> jax.Array:
        """The output."""
        return jax.core.eval_jaxpr(self.program, [], *self.bound, *features, *jax.tree.leaves(params))[0]


class Split(NamedTuple):
    """A trunk and a head; without a trunk the head is the whole model, which takes inputs for features."""

    trunk: Trunk | None
    head: ModelFn


class _Plan(NamedTuple):
    """Programs of one model. What is bound in trunk and head is counted among its arrays and the prepared values."""

    consts: tuple[Any, ...]
    prepare: Any
    trunk: Any
    trunk_bound: tuple[int, ...]
    head: Any
    head_bound: tuple[int, ...]


def split(model_fn: ModelFn, params: Params, example: Any) -> Split:
    """Part a model into what no parameter reaches and the rest.

    Args:
        model_fn: ``model_fn(input, params)`` for one example; arrays that it binds as a pytree stay arguments.
        params: The covered parameters; their shapes suffice.
        example: One example, or its shapes.

    Returns:
        ``head(trunk(x), params)`` is ``model_fn(x, params)``. There is no trunk where it would save nothing: where a
        parameter is used early, or what it uses is larger than the work behind it.
    """
    model = as_jit_argument(model_fn)
    plan = _find(model, params, example)
    if plan is None:
        return Split(None, model_fn)
    given = [*plan.consts, *jax.tree.leaves(model)]
    with jax.ensure_compile_time_eval():  # what is kept must not belong to a program that is being traced
        values = [*given, *_prepared(plan.prepare, given)]
    chosen = bool(getattr(model_fn, "chosen_lowerings", False))
    trunk = Trunk(plan.trunk, tuple(values[i] for i in plan.trunk_bound))
    return Split(trunk, Head(plan.head, tuple(values[i] for i in plan.head_bound), chosen))


def _prepared(program: Any, given: list[Any]) -> list[Any]:
    if not program.outvars:
        return []
    return _run(program, given)


@partial(jax.jit, static_argnums=0)
def _run(program: Any, given: list[Any]) -> list[Any]:
    return jax.core.eval_jaxpr(program, [], *given)


@cached_by_shape
def _find(model_fn: ModelFn, params: Params, example: Any) -> _Plan | None:
    """The plan of a split, from shapes, or ``None`` where there is none."""
    given = (model_fn, example, params)
    whole = jax.make_jaxpr(lambda model_fn, x, params: model_fn(x, params))(*given)
    if whole.jaxpr.effects or len(whole.jaxpr.outvars) != 1 or _needs_64_bits(whole.jaxpr):
        return None
    if not _parted(whole.jaxpr, given).works():  # seen without a second trace, which enters compiled functions
        return None
    flat = jax.make_jaxpr(lambda *leaves: _entered(whole, leaves))(*jax.tree.leaves(given))
    return _plan(flat.jaxpr, list(flat.consts), _parted(flat.jaxpr, given))


def _entered(closed: Any, leaves: Any) -> list[Any]:
    """The results of a program, with the equations of compiled functions inside it in their place."""
    results = interpret(closed.jaxpr, closed.consts, leaves, lambda equation, operands, evaluate: evaluate())
    return [value_of(result) for result in results]


class _Parted:
    """Equations by what they depend on: ``"trunk"`` on inputs alone, ``"head"`` on a parameter, ``"constant"`` on none.

    Attributes:
        bound: Variables of what the model binds.
        inputs: Of the example's leaves.
        leaves: Of the parameters.
        known: Of the inputs alone, with those.
    """

    def __init__(self, jaxpr: Any, sizes: list[int]) -> None:
        count, inputs = sizes[0], sizes[0] + sizes[1]
        self.bound = [*jaxpr.constvars, *jaxpr.invars[:count]]
        self.inputs, self.leaves = jaxpr.invars[count:inputs], jaxpr.invars[inputs:]
        self.known, reached = set(self.inputs), set(self.leaves)
        self.equations = list(jaxpr.eqns)
        self._of: dict[int, str] = {}
        self._readers: dict[Any, list[Any]] = {}
        for equation in jaxpr.eqns:
            given = set(_variables(equation.invars))
            kind = "head" if given & reached else "trunk" if given & self.known else "constant"
            self._of[id(equation)] = kind
            {"head": reached, "trunk": self.known, "constant": set()}[kind].update(equation.outvars)
            for variable in given:
                self._readers.setdefault(variable, []).append(equation)

    def of(self, equation: Any) -> str:
        """What an equation depends on."""
        return self._of[id(equation)]

    def works(self) -> bool:
        """Whether the inputs alone have more done to them than what the head does as cheaply."""
        return any(self.of(e) == "trunk" and e.primitive.name not in CHEAP for e in self.equations)

    def is_inlined(self, equation: Any) -> bool:
        """Whether a constant is made where it is used: it costs nothing there, and memory if it is kept."""
        if self.of(equation) != "constant":
            return False
        name = equation.primitive.name
        if name == "transpose":  # a matrix product takes it as it lies
            users = [user for v in equation.outvars for user in self._readers.get(v, [])]
            return all(user.primitive.name == "dot_general" for user in users)
        return name in LAYOUT or not _variables(equation.invars)


def _parted(jaxpr: Any, given: tuple[Any, Any, Any]) -> _Parted:
    return _Parted(jaxpr, [len(jax.tree.leaves(tree)) for tree in given])


def _plan(jaxpr: Any, consts: list[Any], parted: _Parted) -> _Plan | None:
    inputs, leaves = parted.inputs, parted.leaves
    read = {v for e in jaxpr.eqns if parted.of(e) == "head" for v in _variables(e.invars)} | set(
        _variables(jaxpr.outvars)
    )
    met = [*inputs, *(v for e in jaxpr.eqns for v in e.outvars)]
    frontier = [v for v in met if v in read and v in parted.known]
    features = smallest_cut(frontier, [e for e in jaxpr.eqns if parted.of(e) == "trunk"], inputs)
    kept = set(features)

    def in_head(equation: Any) -> bool:
        known = parted.of(equation) == "trunk" and not kept & set(equation.outvars)
        return parted.of(equation) == "head" or known or parted.is_inlined(equation)

    trunk = _select(jaxpr, features, lambda e: parted.of(e) == "trunk" or parted.is_inlined(e))
    head = _select(jaxpr, jaxpr.outvars, in_head)
    work = sum(_work(e) for e in trunk if parted.of(e) == "trunk")
    if not features or work < _WORTH * sum(v.aval.size for v in features):  # without features there is no batch
        return None
    first = _free(trunk, features, without=[*inputs])
    second = _free(head, jaxpr.outvars, without=[*features, *leaves])
    made = [v for v in dict.fromkeys([*first, *second]) if v not in set(parted.bound)]
    prepare = _select(jaxpr, made, lambda e: parted.of(e) == "constant")
    places = {v: i for i, v in enumerate([*parted.bound, *made])}
    return _Plan(
        tuple(consts),
        _program(jaxpr, parted.bound, made, prepare),
        _program(jaxpr, [*first, *inputs], features, trunk),
        tuple(places[v] for v in first),
        _program(jaxpr, [*second, *features, *leaves], list(jaxpr.outvars), head),
        tuple(places[v] for v in second),
    )


def _select(jaxpr: Any, wanted: Any, included: Callable[[Any], bool]) -> list[Any]:
    """The equations behind some variables, as far as they are included."""
    needed, chosen = set(_variables(wanted)), []
    for equation in reversed(jaxpr.eqns):
        if needed & set(equation.outvars) and included(equation):
            chosen.append(equation)
            needed.update(_variables(equation.invars))
    return chosen[::-1]


def _free(equations: list[Any], wanted: Any, *, without: list[Any]) -> list[Any]:
    """Variables that equations read and do not make, in the order in which they are met."""
    made = {v for e in equations for v in e.outvars} | set(without)
    read = dict.fromkeys([*(v for e in equations for v in _variables(e.invars)), *_variables(wanted)])
    return [v for v in read if v not in made]


def _program(jaxpr: Any, inputs: list[Any], outputs: list[Any], equations: list[Any]) -> Any:
    named = jaxpr.debug_info._replace(arg_names=("",) * len(inputs), result_paths=("",) * len(outputs))
    return jaxpr.replace(constvars=[], invars=inputs, outvars=outputs, eqns=equations, debug_info=named)


def _variables(atoms: Any) -> list[Any]:
    return [atom for atom in atoms if not isinstance(atom, Literal)]


def _needs_64_bits(jaxpr: Any) -> bool:
    """Whether it holds integers of 64 bits that the mode it is run in has not."""
    if jax.dtypes.canonicalize_dtype("float64") == jnp.dtype("float64"):
        return False
    variables = [v for e in jaxpr.eqns for v in e.outvars]
    return any(getattr(v.aval, "dtype", None) in (jnp.dtype("int64"), jnp.dtype("uint64")) for v in variables)


def _work(equation: Any) -> int:
    """Operations of an equation, about."""
    written = sum(v.aval.size for v in equation.outvars if hasattr(v.aval, "size"))
    shapes = [v.aval.shape for v in equation.invars if hasattr(v.aval, "shape")]
    if equation.primitive.name == "dot_general":
        summed = equation.params["dimension_numbers"][0][0]
        return 2 * written * max(1, math.prod(shapes[0][axis] for axis in summed))
    if equation.primitive.name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        return 2 * written * kernel.size // max(1, kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]])
    return 0 if equation.primitive.name in CHEAP else written
