"""Checks of options, where a user's mistake is cheapest."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar, get_args

import torch

LinkName: TypeAlias = Literal[
    "auto", "probit", "mc", "bridge", "bridge_norm", "mean_field_0", "mean_field_1", "mean_field_2"
]

PredictionType: TypeAlias = Literal["glm", "nn", "gp"]
_ELSEWHERE = MappingProxyType(
    {
        "damping": "the prior is added exactly to a Kronecker curvature, which needs none. Leave it out",
        "asdl_fisher_kwargs": "there are no backends. Choose curvature= and kfac_approx=",
        "functional_approximation": "hessian_structure='gp' with n_subset= is the one function-space posterior",
        "objective": "it is called loss",
        "layerwise": "use prior_structure='layerwise'",
    }
)
"""Options of other libraries, or former ones, and what to use in their place."""

P = ParamSpec("P")
R = TypeVar("R")


def spelled(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function name the nearest of its options where one is misspelt.

    The wrapper raises ``TypeError`` for an option that is not there.
    """
    parameters = inspect.signature(function).parameters.values()
    known = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in () if takes_any else kwargs:
            if name not in known:
                raise unknown_option(function.__qualname__, name, known)
        return function(*args, **kwargs)

    return checked


def unknown_option(where: str, name: str, known: list[str]) -> TypeError:
    """The error for an option that is not there, with the nearest that is."""
    if name in _ELSEWHERE:
        return TypeError(f"{where} takes no {name}: {_ELSEWHERE[name]}.")
    options = ", ".join(option for option in known if option != "self")
    hint = did_you_mean(name, known, cutoff=0.5)
    return TypeError(f"{where} got an unexpected option {name!r}.{hint} There are {options}.")


def did_you_mean(name: str, known: list[str], *, cutoff: float = 0.6) -> str:
    """A sentence for a message, after a space, where one of the known names is near."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    return f" Did you mean {near[0]!r}?" if near else ""


def check_generator(generator: Any) -> None:
    """Refuse what is no torch generator.

    Raises:
        TypeError: Naming what was given.
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator is a {type(generator).__name__}. Give a torch.Generator, or none.")


def one_of(name: str, value: Any, choices: Any) -> None:
    """Refuse a value that is not among a ``Literal``'s.

    Raises:
        ValueError: Naming the option, the value and the choices.
    """
    if value not in get_args(choices):
        raise ValueError(f"{name}={value!r}. Choose one of {', '.join(map(repr, get_args(choices)))}.")


def positive(name: str, value: Any) -> None:
    """Refuse anything but a positive finite number.

    Raises:
        ValueError: Naming the option and the value.
    """
    if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
        raise ValueError(f"{name}={value!r}: give a positive number.")


def whole(name: str, value: Any) -> None:
    """Refuse anything but a whole number of at least one.

    Raises:
        ValueError: Naming the option and the value.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r}: give a whole number of at least one.")
