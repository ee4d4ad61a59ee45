"""Compile closures without baking the arrays they close over into the program."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial, wraps
from typing import Any, TypeVar

import jax
import jax.core
from jax.tree_util import Partial

from jax_core.xla.backend import platform

T = TypeVar("T")


def jit_closure(function: Callable[..., Any]) -> Callable[..., Any]:
    """``jax.jit`` for a closure over arrays: they become arguments of the program, not constants of it.

    XLA folds constants at compile time and stores them in every program; a network's weights or a batch captured by a
    closure would cost seconds and copies. One program is made per tree and shapes of the arguments.
    """
    programs: dict[Any, Callable[..., list[Any]]] = {}
    out_trees: dict[Any, Any] = {}

    def call(*args: Any) -> Any:
        leaves, treedef = jax.tree.flatten(args)
        signature = (treedef, tuple((leaf.shape, leaf.dtype) for leaf in map(jax.typeof, leaves)))
        if signature not in programs:
            closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
            programs[signature] = partial(jax.jit(partial(jax.core.eval_jaxpr, closed.jaxpr)), closed.consts)
            out_trees[signature] = jax.tree.structure(shape)
        return jax.tree.unflatten(out_trees[signature], programs[signature](*leaves))

    return call


def as_jit_argument(function: Callable[..., Any]) -> Any:
    """A callable that can be handed to a compiled program as an argument.

    A callable that is a pytree (a ``Partial``, a registered dataclass with ``__call__``) stays as it is: what it binds
    is data of the program. Any other is wrapped as a static one, known by its identity.
    """
    return Partial(function) if jax.tree_util.all_leaves([function]) else function


def cached_by_shape(function: Callable[..., T]) -> Callable[..., T]:
    """Remember what a function of shapes found: it is called again only for other trees, shapes or dtypes.

    Args:
        function: Of pytrees, callables among them, which it gets as abstract arrays, so that it can trace a model that
            binds some; what it returns holds none. It may look at the backend. Keyword arguments are hashed.
    """

    @lru_cache(maxsize=64)
    def remembered(backend: str, treedef: Any, leaves: tuple[jax.ShapeDtypeStruct, ...], options: tuple[Any, ...]) -> T:
        found: list[T] = []
        args = jax.tree.unflatten(treedef, leaves)
        jax.eval_shape(lambda *args: found.append(function(*args, **dict(options))), *args)
        return found[0]

    @wraps(function)
    def call(*args: Any, **options: Any) -> T:
        leaves, treedef = jax.tree.flatten(args)
        shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in map(jax.typeof, leaves))
        return remembered(platform(), treedef, shapes, tuple(options.items()))

    return call
