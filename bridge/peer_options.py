"""Options of laplace-torch that mean something else here: what they ask for, or what to use in their place."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import torch

from bridge.options import one_of, whole
from jax_core.curvature.fisher_likelihood import Curvature
from jax_core.fit import Structure
from jax_core.kronecker import KfacApprox

P = ParamSpec("P")
R = TypeVar("R")

_REDUCTIONS = (None, "average", "pick_first", "pick_last")
_KINDS: tuple[tuple[str, Curvature], ...] = (("GGN", "ggn"), ("EF", "empirical_fisher"), ("Fisher", "mc_fisher"))


@dataclass(frozen=True)
class Jacobians:
    """The two methods of laplace-torch's backends that are called on a fitted one.

    Attributes:
        of: :meth:`bridge.Laplace.jacobians`.
    """

    of: Callable[[Any], tuple[torch.Tensor, torch.Tensor]]

    def jacobians(self, x: Any, enable_backprop: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the weights that the posterior covers, and the outputs."""
        if enable_backprop:
            raise ValueError("These Jacobians are constants to torch. Differentiate la(x), with enable_backprop=True.")
        return self.of(x)

    def last_layer_jacobians(self, x: Any, enable_backprop: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """The same, of a ``"last_layer"``."""
        return self.jacobians(x, enable_backprop)


def without_idle_options(function: Callable[P, R]) -> Callable[P, R]:
    """Take off options of laplace-torch that change nothing here; where one asks for something, that is warned of.

    The wrapper raises ``ValueError`` for values that laplace-torch does not know, or that ask for what is not here.
    """

    @functools.wraps(function)
    def without(*args: P.args, **kwargs: P.kwargs) -> R:
        given: dict[str, Any] = kwargs
        if "feature_reduction" in given:
            _told_of_reduction(given.pop("feature_reduction"))
        if "independent_outputs" in given and given.pop("independent_outputs"):
            warnings.warn("independent_outputs=True is not needed: how outputs vary together is kept.", stacklevel=2)
        if given.get("functional_approximation") == "sod":
            given.pop("functional_approximation")
        for name, default in (("damping", False), ("asdl_fisher_kwargs", None)):
            if name in given and given[name] == default:
                given.pop(name)
        return function(*args, **kwargs)

    return without


def _told_of_reduction(value: Any) -> None:
    if value not in _REDUCTIONS:
        raise ValueError(f"feature_reduction={value!r}. Leave it out: the model's own forward reduces features.")
    if value is not None:
        warnings.warn(
            f"feature_reduction={str(getattr(value, 'value', value))!r} is not needed: a last layer is followed "
            "through the model's own forward, however that reduces its features.",
            stacklevel=3,
        )


def curvature_of(
    curvature: Curvature | None, backend: Any, backend_kwargs: Mapping[str, Any] | None = None
) -> Curvature:
    """The curvature that was asked for, by its name or by one of laplace-torch's backends.

    Raises:
        ValueError: For a backend that stands for none, options of one that have no meaning here, or two answers.
    """
    options = dict(backend_kwargs or {})
    options.pop("kfac_approx", None)
    stochastic = options.pop("stochastic", False)
    if options:
        raise ValueError(
            f"backend_kwargs={sorted(options)}: JAX computes the curvature, so a backend's options have no meaning "
            "here. Leave them out; see curvature=, kfac_approx=, method= and rank=."
        )
    found = _kind_of("StochasticFisher") if stochastic else None
    if backend is not None:
        name = getattr(backend, "__name__", str(backend))
        kind = _kind_of(name)
        if kind is None:
            raise ValueError(
                f"backend={name}: JAX computes the curvature here. Leave it out, and choose with curvature='ggn', "
                "'empirical_fisher' or 'mc_fisher'."
            )
        found = found or kind
        warnings.warn(
            f"backend={name} is read as curvature={found!r}, which JAX computes; the backend itself is not used.",
            stacklevel=4,
        )
    if curvature is not None and found not in (None, curvature):
        raise ValueError(f"curvature={curvature!r}, and the backend asks for {found!r}. Give one of them.")
    return curvature or found or "ggn"


def kfac_approx_of(given: KfacApprox | None, backend_kwargs: Mapping[str, Any] | None = None) -> KfacApprox:
    """The Kronecker factors that were asked for, here or in the options of curvlinops' backend.

    Raises:
        ValueError: For an unknown one, or two answers.
    """
    found = dict(backend_kwargs or {}).get("kfac_approx")
    for value in (given, found):
        if value is not None:
            one_of("kfac_approx", value, KfacApprox)
    if None not in (given, found) and given != found:
        raise ValueError(f"kfac_approx={given!r}, and backend_kwargs ask for {found!r}. Give one of them.")
    return given or found or "expand"


def check_structure(structure: Any, n_subset: int | None) -> None:
    """Refuse an unknown structure, or a function space without the size of its subset.

    Raises:
        ValueError: Naming the structures.
    """
    one_of("hessian_structure", structure, Structure)
    if (structure == "gp") != (n_subset is not None):
        raise ValueError(
            "hessian_structure='gp' needs n_subset=, the number of training samples to work with, and no other "
            "structure takes it."
        )
    if n_subset is not None:
        whole("n_subset", n_subset)


def _kind_of(backend: str) -> Curvature | None:
    return next((kind for ending, kind in _KINDS if backend.endswith(ending)), None)
