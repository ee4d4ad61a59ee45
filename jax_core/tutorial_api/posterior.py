"""From a curvature product to a function of the prior that gives posteriors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jax_core.lowrank import lanczos, lobpcg, nystrom
from jax_core.lowrank.spectrum import check_finite, clip_spectrum
from jax_core.matrix_free import block_product, diagonal, to_dense
from jax_core.operators import Dense, Diagonal, Operator
from jax_core.operators.short_repr import ShortRepr
from jax_core.posterior.posterior import Posterior
from jax_core.posterior.prior import prior_vector
from jax_core.types import MatVec
from jax_core.xla.precision import full_precision

Reduction: TypeAlias = Callable[[MatVec, Any], Operator]
"""``(mv, layout) -> operator``, where ``mv`` takes pytrees like ``layout`` or, if that is an int, flat vectors."""

_PRIOR_ARGUMENTS = ("prior_prec", "sigma_noise", "sigma_squared", "temperature")


@dataclass(frozen=True, repr=False)
class PosteriorFn(ShortRepr):
    """``posterior_fn(prior_arguments, loss_scaling_factor) -> Posterior``; the curvature is reduced once.

    Attributes:
        curvature: The reduced curvature.
        layout: The parameters, which become the mean, or the dimension.
    """

    curvature: Operator
    layout: Any

    def __call__(self, prior_arguments: Mapping[str, Any], loss_scaling_factor: Any = 1.0) -> Posterior:
        r"""The posterior with precision $\tfrac{\text{scaling}}{\sigma^2 T} G + D$.

        Args:
            prior_arguments: ``prior_prec`` ($D$: a number, one per layer, one per parameter, or a pytree); optionally
                ``sigma_noise`` ($\sigma$) or ``sigma_squared``, and ``temperature`` ($T$).
            loss_scaling_factor: Scale of the loss behind the curvature.

        laplax multiplies the curvature by ``sigma_squared``: carry its inverse over from there. Its scale divides the
        precision, the prior's share too.

        Raises:
            TypeError: For any other key, or without ``prior_prec``.
        """
        unknown = set(prior_arguments) - set(_PRIOR_ARGUMENTS)
        if unknown or "prior_prec" not in prior_arguments:
            raise TypeError(
                f"prior_arguments holds {sorted(prior_arguments)}. It needs 'prior_prec' and may have 'sigma_noise' or "
                "'sigma_squared', and 'temperature'."
            )
        if "sigma_noise" in prior_arguments and "sigma_squared" in prior_arguments:
            raise TypeError("Give sigma_noise or its square sigma_squared, not both.")
        variance = prior_arguments.get("sigma_squared", jnp.square(prior_arguments.get("sigma_noise", 1.0)))
        scale = loss_scaling_factor / (variance * prior_arguments.get("temperature", 1.0))
        mean = jnp.zeros(self.layout) if isinstance(self.layout, int) else self.layout
        prior = prior_vector(prior_arguments["prior_prec"], mean)
        return Posterior.create(mean, self.curvature.rescale(jnp.asarray(scale, prior.dtype)), prior)


@full_precision
def create_posterior_fn(
    curv_type: str | Operator | Reduction,
    mv: MatVec | None = None,
    layout: Any = None,
    *,
    key: Array | None = None,
    rank: int | None = None,
    maxiter: int | None = None,
    mv_jit: bool = True,
    passes: int = 1,
    progress: bool = False,
    structures: Mapping[str, Reduction] | None = None,
) -> PosteriorFn:
    """Reduce a curvature to a structure that can be inverted.

    Args:
        curv_type: ``"full"``, ``"diagonal"``, ``"lanczos"``, ``"lobpcg"`` or ``"nystrom"``; or an operator that is
            already reduced; or your own reduction, a callable ``(mv, layout) -> Operator``.
        mv: The curvature's product, on pytrees like ``layout`` (or flat vectors if it is an int).
        layout: The parameters, or the dimension.
        key: Random key of the randomised and iterative methods.
        rank: Eigenpairs for the low-rank methods.
        maxiter: Another name for ``rank``, as steps of Lanczos.
        mv_jit: Accepted and not needed: products are compiled, loaders are looped over on the host.
        passes: Block products of ``"nystrom"``.
        progress: Show a progress bar where the method loops on the host.
        structures: Reductions of your own by name, for ``curv_type`` to choose from as well; nothing is registered.

    Raises:
        ValueError: For an unknown name or a rank out of range.
        TypeError: If ``mv`` or ``layout`` is missing.
    """
    del mv_jit
    own = structures or {}
    curv_type = own.get(curv_type, curv_type) if isinstance(curv_type, str) else curv_type
    if isinstance(curv_type, Operator):
        return PosteriorFn(curv_type, curv_type.size if layout is None else layout)
    if mv is None or layout is None:
        raise TypeError("create_posterior_fn needs the curvature's product mv and its layout (the parameters).")
    if callable(curv_type):
        return PosteriorFn(curv_type(mv, layout), layout)
    key = jax.random.key(0) if key is None else key
    wanted = rank if rank is not None else maxiter
    if curv_type == "full":
        return PosteriorFn(_full(mv, layout), layout)
    if curv_type == "diagonal":
        return PosteriorFn(Diagonal(diagonal(mv, layout)), layout)
    if curv_type not in ("lanczos", "lobpcg", "nystrom"):
        known = ", ".join(map(repr, ("full", "diagonal", "lanczos", "lobpcg", "nystrom", *own)))
        raise ValueError(f"Unknown structure {curv_type!r}. Choose one of {known}, or pass an operator or a reduction.")
    if wanted is None:
        raise TypeError(f"The structure {curv_type!r} needs a rank (or maxiter).")
    if curv_type == "lanczos":
        reads_data = hasattr(mv, "sum_over")  # a DataLoaderMV: loops on the host and compiles its own pieces
        return PosteriorFn(lanczos(mv, layout, rank=wanted, key=key, mv_jit=not reads_data, progress=progress), layout)
    size, block = block_product(mv, layout)
    if curv_type == "lobpcg":
        return PosteriorFn(lobpcg(block, size, rank=wanted, key=key, dtype=_dtype(layout)), layout)
    return PosteriorFn(nystrom(block, size, rank=wanted, key=key, passes=passes, dtype=_dtype(layout)), layout)


def _dtype(layout: Any) -> Any:
    return jnp.result_type(float) if isinstance(layout, int) else jnp.result_type(*jax.tree.leaves(layout))


def _full(mv: MatVec, layout: Any) -> Dense:
    operator = Dense.from_matrix(to_dense(mv, layout))
    values = jax.device_get(operator.eigenvalues)
    check_finite(values, "The dense matrix")
    return Dense(jnp.asarray(clip_spectrum(values, operator.size, values.dtype)), operator.eigenvectors)
