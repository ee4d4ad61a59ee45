"""Matrices over the weights as values: something to multiply with, in the order of ``model.parameters()``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import torch

from bridge.parameter_order import ParameterOrder
from bridge.tensors import to_jax, to_torch
from bridge.wide_types import InOwnTypes
from jax_core.data.trees import on_device_of
from jax_core.operators import LowRank, Operator
from jax_core.posterior import Posterior

_DENSE_BYTES = 2**31


@dataclass(frozen=True)
class WeightMatrix(InOwnTypes, ABC):
    """A symmetric matrix over the weights, kept in its structure.

    Attributes:
        order: Of the weights.
        device: Of results.
        dtype: Of results.
    """

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

    def bmm(self, W: torch.Tensor) -> torch.Tensor:
        """Products with vectors on the last axis of ``(..., P)``, laplace-torch's form of ``@``."""
        return self._along(W, self._products)

    def _along(self, W: torch.Tensor, products: Callable[[jax.Array], jax.Array]) -> torch.Tensor:
        if W.ndim == 0 or W.shape[-1] != self.order.size:
            raise ValueError(f"Vectors of shape {tuple(W.shape)}: the last axis runs over {self.order.size} weights.")
        rows = W.reshape(-1, self.order.size).detach().cpu()[:, self.order.core_places]
        return self._tensor(products(to_jax(rows).astype(self._entries().dtype))).reshape(W.shape)

    def diag(self) -> torch.Tensor:
        """:meth:`diagonal`."""
        return self.diagonal()

    def to_matrix(self) -> torch.Tensor:
        """All of it, ``(P, P)``.

        Raises:
            ValueError: If it would take more than two gigabytes.
        """
        return self._written(self._products)

    def diagonal(self) -> torch.Tensor:
        """The diagonal ``(P,)``."""
        return self._tensor(self._entries())

    @abstractmethod
    def _products(self, rows: jax.Array) -> jax.Array:
        """With each of some rows ``(N, P)``, in the core's order."""

    @abstractmethod
    def _entries(self) -> jax.Array:
        """The diagonal, in the core's order."""

    def _written(self, products: Callable[[jax.Array], jax.Array]) -> torch.Tensor:
        check_dense(self.order.size, "products (matrix @ vector)")
        rows = products(jnp.eye(self.order.size, dtype=self._entries().dtype))
        return self._tensor((rows + rows.T) / 2)[self.order.places_in_core]

    def _tensor(self, rows: jax.Array) -> torch.Tensor:
        """Rows over the weights in torch's order."""
        return to_torch(rows).to(self.device, self.dtype)[..., self.order.places_in_core]


@dataclass(frozen=True)
class CurvatureMatrix(WeightMatrix):
    r"""The curvature $G$ of the data over the weights."""

    operator: Operator

    def _products(self, rows: jax.Array) -> jax.Array:
        return each(_product, self.operator, rows)

    def _entries(self) -> jax.Array:
        return self.operator.entries()


@dataclass(frozen=True)
class PosteriorPrecision(WeightMatrix):
    r"""$\Sigma^{-1}$ over the weights."""

    posterior: Posterior

    def to_matrix(self, exponent: float = 1) -> torch.Tensor:
        r"""All of it, ``(P, P)``, or with ``exponent=-1`` the covariance $\Sigma$.

        Raises:
            ValueError: If it would take more than two gigabytes, or for another exponent.
        """
        _check_exponent(exponent)
        return self._written(self._products if exponent == 1 else self._covariances)

    def diag(self, exponent: float = 1) -> torch.Tensor:
        r"""The diagonal ``(P,)``, or with ``exponent=-1`` that of the covariance $\Sigma$.

        Raises:
            ValueError: For another exponent.
        """
        _check_exponent(exponent)
        return self.diagonal() if exponent == 1 else self._tensor(self.posterior.variances())

    def bmm(self, W: torch.Tensor, exponent: float = -1) -> torch.Tensor:
        r"""Products with vectors on the last axis of ``(..., P)``.

        Args:
            W: The vectors.
            exponent: With the covariance $\Sigma$, -1; the precision, 1; or -0.5, an $S$ with $S S^\top = \Sigma$.

        Raises:
            ValueError: For another exponent, or vectors of another length.
        """
        known = {1: self._products, -1: self._covariances, -0.5: self._scales}
        if exponent not in known:
            raise ValueError(f"exponent={exponent!r}: give -1, the covariance, -0.5, its root, or 1, the precision.")
        return self._along(W, known[exponent])

    def inv_square_form(self, W: torch.Tensor) -> torch.Tensor:
        r"""$W \Sigma W^\top$ of ``(..., K, P)``, as ``(..., K, K)``: of Jacobians, the covariance of outputs."""
        return self.bmm(W) @ W.to(self.device, self.dtype).mT

    def logdet(self) -> torch.Tensor:
        r"""$\log\det\Sigma^{-1}$."""
        return to_torch(self.posterior.logdet()).to(self.device, self.dtype)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor] | torch.Tensor]:
        r"""Of a low rank, laplace-torch's parts ``(U, l), d`` with $\Sigma^{-1} = U \operatorname{diag}(l) U^\top + D$.

        Raises:
            TypeError: For another structure.
        """
        low = self.posterior.relative_curvature
        if not isinstance(low, LowRank):
            raise TypeError("This precision has no parts (U, l), d: it is no low rank. Use it as a matrix.")
        roots = jnp.broadcast_to(jnp.sqrt(self.posterior.prior_precision), (low.size,))
        values = to_torch(low.s).to(self.device, self.dtype)
        return iter(((self._tensor((low.U * roots[:, None]).T).T, values), self._tensor(jnp.square(roots))))

    def _products(self, rows: jax.Array) -> jax.Array:
        return each(Posterior.precision_flat, self.posterior, rows)

    def _scales(self, rows: jax.Array) -> jax.Array:
        return each(Posterior.scale_flat, self.posterior, rows)

    def _covariances(self, rows: jax.Array) -> jax.Array:
        return each(Posterior.cov_flat, self.posterior, rows)

    def _entries(self) -> jax.Array:
        return self.posterior.precisions()


def _check_exponent(exponent: float) -> None:
    if exponent not in (1, -1):
        raise ValueError(f"exponent={exponent!r}: 1 gives the precision, -1 the covariance.")


def check_dense(size: int, instead: str) -> None:
    """Refuse a matrix over the weights that is too large.

    Raises:
        ValueError: Naming its size and what does without it.
    """
    if 8 * size**2 > _DENSE_BYTES:
        raise ValueError(
            f"A matrix over {size} weights would take {8 * size**2 / 2**30:.3g} GiB. Use {instead}, which form none."
        )


def each(product: Callable[[Any, jax.Array], jax.Array], matrix: Any, rows: jax.Array) -> jax.Array:
    """A product with each of some rows ``(N, P)``, in the core's order of weights, where the matrix lies."""
    return _each(product, matrix, on_device_of(matrix, rows))


@partial(jax.jit, static_argnames="product")
def _each(product: Callable[[Any, jax.Array], jax.Array], matrix: Any, rows: jax.Array) -> jax.Array:
    return jax.vmap(partial(product, matrix))(rows)


def _product(operator: Operator, row: jax.Array) -> jax.Array:
    return operator.mv(row)
