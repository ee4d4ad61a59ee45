"""A posterior's precision as a value: something to multiply with."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import torch

from bridge.parameter_order import ParameterOrder
from bridge.tensors import to_jax, to_torch
from jax_core.posterior import Posterior

_DENSE_BYTES = 2**31


@dataclass(frozen=True)
class PosteriorPrecision:
    r"""$\Sigma^{-1}$ over the weights in the order of ``model.parameters()``, kept in its structure.

    Attributes:
        posterior: That it belongs to.
        order: Of the weights.
        device: Of results.
        dtype: Of results.
    """

    posterior: Posterior
    order: ParameterOrder
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, posterior: Posterior, order: ParameterOrder, like: torch.Tensor) -> PosteriorPrecision:
        """Of a posterior, with results like a tensor."""
        return cls(posterior, order, like.device, like.dtype)

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix."""
        return self.order.size, self.order.size

    def __matmul__(self, vectors: torch.Tensor) -> torch.Tensor:
        """Product with a vector ``(P,)`` or with the columns of ``(P, K)``."""
        if vectors.ndim not in (1, 2) or vectors.shape[0] != self.order.size:
            raise ValueError(f"A product with {tuple(vectors.shape)}: give ({self.order.size},) or its columns.")
        columns = vectors.reshape(self.order.size, -1).T.detach().cpu()
        rows = to_jax(columns[:, self.order.core_places]).astype(self.posterior.prior_precision.dtype)
        found = self._tensor(products(self.posterior, rows))[:, self.order.places_in_core]
        return found.T.reshape(vectors.shape)

    def to_matrix(self) -> torch.Tensor:
        """All of it, ``(P, P)``.

        Raises:
            ValueError: If it would take more than two gigabytes.
        """
        check_dense(self.order.size, "products (precision @ vector)")
        rows = products(self.posterior, jnp.eye(self.order.size, dtype=self.posterior.prior_precision.dtype))
        places = self.order.places_in_core
        return self._tensor((rows + rows.T) / 2)[places][:, places]

    def diagonal(self) -> torch.Tensor:
        """The diagonal ``(P,)``."""
        return self._tensor(self.posterior.precisions())[self.order.places_in_core]

    def _tensor(self, array: jax.Array) -> torch.Tensor:
        return to_torch(array).to(self.device, self.dtype)


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
