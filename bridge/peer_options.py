"""Options of laplace-torch that mean something else here: what they ask for, or what to use in their place."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from bridge.options import one_of, whole
from jax_core.curvature.fisher_likelihood import Curvature
from jax_core.fit import Structure
from jax_core.kronecker import KfacApprox

_KINDS: tuple[tuple[str, Curvature], ...] = (("GGN", "ggn"), ("EF", "empirical_fisher"), ("Fisher", "mc_fisher"))


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
