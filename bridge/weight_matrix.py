"""Matrices over the weights as values: something to multiply with, in the order of ``model.parameters()``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import torch

from bridge.parameter_order import ParameterOrder
from bridge.tensors import to_jax, to_torch
from bridge.wide_types import InOwnTypes
from jax_core.operators import LowRank, Operator
from jax_core.posterior import Posterior

_DENSE_BYTES = 2**31


@dataclass(frozen=True)
class WeightMatrix(InOwnTypes):
    r"""The curvature $G$ of the data over the weights, kept in its structure.

    Attributes:
        source: The matrix, in the core's order.
        order: Of the weights.
        device: Of results.
        dtype: Of results.
    """

    source: Operator
    order: ParameterOrder
    device: torch.device
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix."""
        return self.order.size, self.order.size

    def runs_wide(self) -> bool:
        """Whether it is of a model in float64."""
        return self.dtype == torch.float64

    def __matmul__(self, vectors: torch.Tensor) -> torch.Tensor:
        """Product with a vector ``(P,)`` or with the columns of ``(P, K)``."""
        if vectors.ndim not in (1, 2) or vectors.shape[0] != self.order.size:
            raise ValueError(f"A product with {tuple(vectors.shape)}: give ({self.order.size},) or its columns.")
        columns = vectors.reshape(self.order.size, -1).T.detach().cpu()
        rows = to_jax(columns[:, self.order.core_places]).astype(self._entries().dtype)
        return self._tensor(self._products(rows)).T.reshape(vectors.shape)

    def to_matrix(self) -> torch.Tensor:
        """All of it, ``(P, P)``.

        Raises:
            ValueError: If it would take more than two gigabytes.
        """
        return self._written(self._products)

    def diagonal(self) -> torch.Tensor:
        """The diagonal ``(P,)``."""
        return self._tensor(self._entries())

    def _products(self, rows: jax.Array) -> jax.Array:
        return _operator_products(self.source, rows)

    def _entries(self) -> jax.Array:
        return self.source.entries()

    def _written(self, products: Callable[[jax.Array], jax.Array]) -> torch.Tensor:
        check_dense(self.order.size, "products (matrix @ vector)")
        rows = products(jnp.eye(self.order.size, dtype=self._entries().dtype))
        return self._tensor((rows + rows.T) / 2)[self.order.places_in_core]

    def _tensor(self, rows: jax.Array) -> torch.Tensor:
        """Rows over the weights in torch's order."""
        return to_torch(rows).to(self.device, self.dtype)[..., self.order.places_in_core]


@dataclass(frozen=True)
class PosteriorPrecision(WeightMatrix):
    r"""$\Sigma^{-1}$ over the weights, kept in its structure."""

    source: Posterior  # type: ignore[assignment]

    @classmethod
    def of(cls, posterior: Posterior, order: ParameterOrder, like: torch.Tensor) -> PosteriorPrecision:
        """Of a posterior, with results like a tensor."""
        return cls(posterior, order, like.device, like.dtype)

    def to_matrix(self, exponent: float = 1) -> torch.Tensor:
        r"""All of it, ``(P, P)``, or with ``exponent=-1`` the covariance $\Sigma$.

        Raises:
            ValueError: If it would take more than two gigabytes, or for another exponent.
        """
        if exponent not in (1, -1):
            raise ValueError(f"exponent={exponent!r}: 1 gives the precision, -1 the covariance.")
        return self._written(self._products if exponent == 1 else self._covariances)

    def logdet(self) -> torch.Tensor:
        r"""$\log\det\Sigma^{-1}$."""
        return to_torch(self.source.logdet()).to(self.device, self.dtype)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor] | torch.Tensor]:
        r"""Of a low rank, laplace-torch's parts ``(U, l), d`` with $\Sigma^{-1} = U \operatorname{diag}(l) U^\top + D$.

        Raises:
            TypeError: For another structure.
        """
        low = self.source.relative_curvature
        if not isinstance(low, LowRank):
            raise TypeError("This precision has no parts (U, l), d: it is no low rank. Use it as a matrix.")
        roots = jnp.broadcast_to(jnp.sqrt(self.source.prior_precision), (low.size,))
        values = to_torch(low.s).to(self.device, self.dtype)
        return iter(((self._tensor((low.U * roots[:, None]).T).T, values), self._tensor(jnp.square(roots))))

    def _products(self, rows: jax.Array) -> jax.Array:
        return products(self.source, rows)

    def _covariances(self, rows: jax.Array) -> jax.Array:
        return _covariance_products(self.source, rows)

    def _entries(self) -> jax.Array:
        return self.source.precisions()


def check_dense(size: int, instead: str) -> None:
    """Refuse a matrix over the weights that is too large.

    Raises:
        ValueError: Naming its size and what does without it.
    """
    if 8 * size**2 > _DENSE_BYTES:
        raise ValueError(
            f"A matrix over {size} weights would take {8 * size**2 / 2**30:.3g} GiB. Use {instead}, which form none."
        )


@jax.jit
def products(posterior: Posterior, rows: jax.Array) -> jax.Array:
    r"""$\Sigma^{-1}$ times each of some rows ``(N, P)``, in the core's order of weights."""
    return jax.vmap(posterior.precision_flat)(rows)


@jax.jit
def _covariance_products(posterior: Posterior, rows: jax.Array) -> jax.Array:
    return jax.vmap(posterior.cov_flat)(rows)


@jax.jit
def _operator_products(operator: Operator, rows: jax.Array) -> jax.Array:
    return jax.vmap(operator.mv)(rows)
